"""Resources of a trial that Tune ends early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lafs_ray.training.prepare import RunInputs, prepare_run
from tests.training.faces import tiny

CPUS = 6


class Trial:
    """An actor that drives a run, as Tune's does."""

    def train(self, inputs: RunInputs) -> None:
        from lafs_ray.engine.ray_train import run_on_ray

        threading.Thread(target=run_on_ray, args=(inputs,), daemon=True).start()


def until(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {limit_s:g} s"
        time.sleep(0.5)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_trial__frees_its_workers(tmp_path: Path, face_set_path: str, no_ray: None) -> None:
    """The next trial gets the CPUs of one whose process, with Ray Train's controller, was killed; else it would wait
    for ever."""
    import ray

    from lafs_ray.engine.ray_session import start_or_join

    # As `tuner.run_batch` starts it for trials with workers.
    start_or_join(CPUS, needs_dashboard=True)
    endless = ["compute.workers=1", "ingest.actors_per_worker=1", "duration=100000 steps", "log.every_steps=1"]
    inputs = prepare_run(tiny(tmp_path, face_set_path, *endless))
    trial = ray.remote(num_cpus=1)(Trial).remote()
    ray.get(trial.train.remote(inputs))
    metrics = inputs.folder().uri + "/metrics.jsonl"
    until(lambda: Path(metrics).exists() and Path(metrics).stat().st_size > 0, 300)
    assert ray.available_resources()["CPU"] < CPUS
    ray.kill(trial)
    until(lambda: ray.available_resources().get("CPU") == CPUS, 60)
