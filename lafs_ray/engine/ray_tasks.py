"""Packing and landmark caching as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lafs_ray.data.landmark_cache import Part
from lafs_ray.data.packing.session import Apply
from lafs_ray.training.tasks.build_landmark_cache import CacheJob, make_part
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor


def apply_on_ray(workers: int, *, uses_gpu: bool = False) -> Apply:
    """Return an `Apply` on Ray; what its tasks share is put into the object store once.

    Args:
        workers: the largest number of tasks at a time, each with one CPU.
        uses_gpu: whether each has a GPU, too.
    """

    def apply(task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        # Imported here: without workers, Ray need not be installed.
        import ray

        from lafs_ray.engine.ray_session import join_cluster

        gpus = workers if uses_gpu else 0
        join_cluster(workers, f"--workers = {workers}", gpus, f"--workers = {workers}, a GPU each")
        reference = ray.put(shared)
        remote = ray.remote(num_cpus=1, num_gpus=int(uses_gpu))(task)
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


def cache_on_ray(job: CacheJob, parts: Sequence[Part], workers: int) -> Iterator[Part]:
    """Predict and write parts of a landmark cache in Ray tasks, each of which builds the network.

    Args:
        job: faces, network and folder.
        parts: the missing ones.
        workers: tasks at a time, with one CPU each, and a GPU each if the job's device is cuda.
    """
    if parts:
        yield from apply_on_ray(workers, uses_gpu=job.device != "cpu")(_make_part, job, parts)


def _make_part(job: CacheJob, part: Part) -> Part:
    make_part(job, part, LandmarkPredictor(job.network, job.device))
    return part
