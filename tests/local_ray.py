"""The Ray of this machine that tests of one process share."""

from __future__ import annotations

import pytest

CPUS = 8


def start() -> None:
    """Start it as a command does, unless it is there."""
    pytest.importorskip("ray")
    from lafs_ray.engine.ray_session import start_or_join

    start_or_join(CPUS)
