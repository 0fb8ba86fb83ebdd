"""Signals to checkpoint or stop between the regular checkpoints.

Imports no torch, as Ray processes use it that need nothing else of training.
"""

from __future__ import annotations

import enum


class RunRequest(enum.IntEnum):
    """In ascending order: the highest of all ranks is followed."""

    NOTHING = 0
    SAVE = 1
    """Save after this step and continue: this machine may soon be preempted."""
    STOP = 2
    """Save after this step and stop."""
