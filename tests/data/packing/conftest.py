from __future__ import annotations

import pytest

from lafs_ray.data.packing.options import PackOptions
from tests.data.packing.sets import SMALL_RUNS


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sorted runs, and many blocks per shard."""
    monkeypatch.setattr(PackOptions, "task_bytes", SMALL_RUNS)
