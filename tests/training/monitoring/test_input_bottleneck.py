from __future__ import annotations

import pytest

from lafs_ray.training.monitoring.input_bottleneck import slow_stage
from tests.training.builds import pretrain

WORKERS = ["compute.workers=2", "ingest.actors_per_worker=3", "compute.cpus_per_worker=1"]
REPORT = {"images_per_s": 600.0, "wait_share": 0.4, "read_ms": 0.5, "preprocess_ms": 10.0}


def advice(*overrides: str, **metrics: float) -> str:
    return slow_stage({**REPORT, **metrics}, pretrain(*WORKERS, *overrides))


def test_slow_stage__preprocessing() -> None:
    """1000 images/s without waiting: 500 a worker × 10 ms = 5 processes, of which 3 are there."""
    text = advice()
    assert "waits for its input for 40% of the time (600 images/s, 1000 without waiting)" in text
    assert "Slow stage: preprocessing" in text
    assert "500 images/s for each worker keep 5.0 processes busy; there are 3" in text
    # 5 busy at three quarters of their time are 7; one CPU each, one to train, one to read.
    assert "ingest.actors_per_worker=7: 2 × (1 + 7 × 1 + 1) = 18 CPUs instead of 10" in text


def test_slow_stage__reading() -> None:
    """500 images/s × 20 ms = 10 reads at once; one for each actor runs, at most 4."""
    text = advice(read_ms=20.0, preprocess_ms=1.0)
    assert "Slow stage: reading. An image occupies a read task for 20.0 ms" in text
    assert "need 10 reads at once (2.5 CPUs); there are 3" in text
    assert "; there are 4" in advice("ingest.actors_per_worker=9", read_ms=20.0, preprocess_ms=1.0)
    assert "lafs pack" in text


def test_slow_stage__the_slower_of_two() -> None:
    """Both are too slow: the one that lacks more is named."""
    assert "Slow stage: preprocessing" in advice(read_ms=9.0, preprocess_ms=60.0)
    assert "Slow stage: reading" in advice(read_ms=90.0, preprocess_ms=10.0)


def test_slow_stage__transfer() -> None:
    """Where preprocessing and reads are not busy, more of them would not help."""
    text = advice(preprocess_ms=1.0)
    assert "the transfer to the training worker" in text
    assert "Preprocessing keeps 0.5 of 3 processes busy and reading 0.2 of 3" in text
    assert "ingest.prefetch_batches from 2 to 4" in text
    assert "compute.cpus_per_worker=2" in text


@pytest.mark.parametrize(("preprocess_ms", "actors"), [(10.0, 10), (0.1, 1)])
def test_slow_stage__debug_mode(preprocess_ms: float, actors: int) -> None:
    """Debug mode preprocesses by itself: the advice is Ray, and how many actors."""
    text = advice("compute.workers=0", preprocess_ms=preprocess_ms)
    assert f"compute.workers=1 ingest.actors_per_worker={actors} " in text
