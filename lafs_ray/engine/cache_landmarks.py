"""The command line of the landmark cache, and its actors on Ray."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from lafs_ray.config.sections import IMAGE_SIZE
from lafs_ray.data import storage
from lafs_ray.data.faces import open_faces
from lafs_ray.data.landmark_cache import Identity, Part
from lafs_ray.errors import ConfigError
from lafs_ray.method.landmarks import LandmarkFinder
from lafs_ray.training.landmarks import (
    CacheJob,
    cache_landmarks,
    default_folder,
    make_here,
    make_part,
    read_landmark_cnn,
)
from lafs_ray.training.trained import inference_device


def cache_job(description: str, arguments: Sequence[str]) -> None:
    """Find and store the landmarks of a set, as the command line says.

    Raises:
        UserError: a mistake in the arguments, the checkpoint or the data.
    """
    options = _parse(description, arguments)
    for name, value in (("--workers", options.workers), ("--max-bad", options.max_bad)):
        if value < 0:
            raise ConfigError(
                name, found=str(value), expected="0 or more", fix=f"choose another {name}"
            )
    network, weights = read_landmark_cnn(options.checkpoint)
    faces = open_faces(storage.absolute(options.faces), options.colour_order, IMAGE_SIZE)
    num_landmarks = len(network.state_dict()["output_layer.1.bias"]) // 2
    identity = Identity(
        weights, faces.fingerprint, options.colour_order, num_landmarks, faces.num_images
    )
    folder = storage.absolute(options.out) if options.out else default_folder(faces, weights)
    device = options.device if options.workers else str(inference_device(options.device))
    say = partial(print, flush=True)
    cache_landmarks(
        CacheJob(faces, identity, network, folder, device),
        partial(make_on_ray, workers=options.workers)
        if options.workers
        else partial(make_here, say=say),
        max_bad=options.max_bad,
        say=say,
        source=options.checkpoint,
    )
    print(f"{folder}: {num_landmarks} landmarks of {faces.num_images:,} records")  # noqa: T201


def _parse(description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="what landmarks.weights will be: a stage-1 run or checkpoint")
    add("faces", help="the set, as data.path")
    add("--out", metavar="FOLDER", help="for landmarks.cache (default: a folder beside the set)")
    add("--colour-order", choices=["rgb", "bgr"], default="rgb", help="as data.colour_order")
    add("--workers", type=int, default=0, help="Ray actors; 0: this process (default)")
    add("--device", default="cpu", help="cpu, or cuda: a GPU for each worker (default cpu)")
    add("--max-bad", type=int, default=100, help="records that may be damaged (default 100)")
    return parser.parse_args(arguments)


class CacheActor:
    """A stateful worker: holds the set's numbers and the network.

    Args:
        job: reference to the `CacheJob` in the object store.
    """

    def __init__(self, job: Any) -> None:
        import ray

        self._job: CacheJob = ray.get(job)
        self._find = LandmarkFinder(self._job.network, self._job.device)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Make the parts of a block; only their numbers travel."""
        for name, first, stop in zip(rows["name"], rows["first"], rows["stop"], strict=True):
            make_part(self._job, Part(str(name), int(first), int(stop)), self._find)
        return {"number": rows["number"]}


def make_on_ray(job: CacheJob, parts: Sequence[Part], workers: int) -> Iterator[Part]:
    """`Apply` on Ray Data: actors take parts, read, compute and write them where they are.

    Args:
        job: what to do.
        parts: the missing ones.
        workers: actors, with one CPU each, and with a GPU each if the job's device is cuda.
    """
    if not parts:
        return
    # Without workers nothing here may need Ray.
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from lafs_ray.engine.cluster import join_cluster
    from lafs_ray.engine.ingest import configure_context

    gpus = 0 if job.device == "cpu" else 1
    cpus = f"--workers {workers} × 1 + 1 for planning"
    join_cluster(workers + 1.0, cpus, gpus * workers, f"--workers {workers}, a GPU each")
    context = DataContext.get_current()
    configure_context(context, workers + 1.0)
    context.execution_options.preserve_order = False
    # A part takes as long as it takes; a slow one is not a hang.
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
