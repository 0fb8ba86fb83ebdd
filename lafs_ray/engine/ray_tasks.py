"""Packing and landmark caching as Ray tasks and actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lafs_ray.data.landmark_cache import Part
from lafs_ray.data.packing.session import Apply
from lafs_ray.training.tasks.build_landmark_cache import (
    CacheJob,
    make_part,
)
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor


def apply_on_ray(workers: int) -> Apply:
    """`Apply` on Ray, with at most `workers` tasks of one CPU at a time.

    What the tasks share is put into the object store once.
    """

    def apply(task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        # Imported here: without workers, Ray need not be installed.
        import ray

        from lafs_ray.engine.ray_session import join_cluster

        join_cluster(workers, f"--workers = {workers}")
        reference = ray.put(shared)
        remote = ray.remote(num_cpus=1)(task)
        waiting = list(reversed(items))
        running: list[Any] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(remote.remote(reference, waiting.pop()))
                done, running = ray.wait(running, num_returns=1)
                yield ray.get(done[0])
        finally:
            for one in running:
                ray.cancel(one, force=True)

    return apply


class CacheActor:
    """A stateful worker that keeps the network.

    Args:
        job: reference to the `CacheJob` in the object store.
    """

    def __init__(self, job: Any) -> None:
        import ray

        self._job: CacheJob = ray.get(job)
        self._find = LandmarkPredictor(self._job.network, self._job.device)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Compute and write the parts of a block; return only their numbers."""
        for name, first, stop in zip(rows["name"], rows["first"], rows["stop"], strict=True):
            make_part(self._job, Part(str(name), int(first), int(stop)), self._find)
        return {"number": rows["number"]}


def cache_on_ray(job: CacheJob, parts: Sequence[Part], workers: int) -> Iterator[Part]:
    """`Apply` on Ray Data: actors read, compute and write parts.

    Args:
        job: faces, network and folder.
        parts: the missing ones.
        workers: actors, with one CPU each, and with a GPU each if the job's device is cuda.
    """
    if not parts:
        return
    # Imported here: without workers, Ray need not be installed.
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from lafs_ray.engine.ray_session import configure_context, join_cluster

    gpus = 0 if job.device == "cpu" else 1
    cpus = f"--workers {workers} × 1 + 1 for planning"
    join_cluster(workers + 1.0, cpus, gpus * workers, f"--workers {workers}, a GPU each")
    context = DataContext.get_current()
    configure_context(context, workers + 1.0)
    context.execution_options.preserve_order = False
    # A slow part is not a hang.
    context.execution_no_progress_timeout_s = -1
    items = [
        {"number": number, "name": part.name, "first": part.first, "stop": part.stop}
        for number, part in enumerate(parts)
    ]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), 1000)).map_batches(
        CacheActor,
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(workers, len(parts))),
        num_cpus=1,
        num_gpus=gpus,
        fn_constructor_args=[ray.put(job)],
    )
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        for number in np.atleast_1d(block["number"]).tolist():
            yield parts[number]
