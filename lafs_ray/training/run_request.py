"""What a run is asked to do out of turn: save at once, or save and end.

Without torch, as processes of Ray use it that need nothing else of training.
"""

from __future__ import annotations

import enum


class RunRequest(enum.IntEnum):
    """In rising order: the highest of all ranks counts."""

    NOTHING = 0
    SAVE = 1
    """Save after this step and go on: this machine may soon be gone."""
    STOP = 2
    """Save after this step and end."""
