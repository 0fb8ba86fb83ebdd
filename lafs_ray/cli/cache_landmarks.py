"""Command line of the landmark cache."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import CacheKey
from lafs_ray.engine.console import LineHandler, log_to
from lafs_ray.engine.ray_tasks import cache_on_ray
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.inference import inference_device
from lafs_ray.training.tasks.build_landmark_cache import (
    Apply,
    CacheJob,
    cache_in_process,
    cache_landmarks,
    default_folder,
    read_landmark_cnn,
)


def cache_job(description: str, arguments: Sequence[str]) -> None:
    """Compute and store the landmarks of a set.

    Raises:
        UserError: an error in the arguments, the checkpoint or the data.
    """
    options = _parse(description, arguments)
    for name, value in (("--workers", options.workers), ("--max-bad", options.max_bad)):
        if value < 0:
            raise ConfigError(name, found=str(value), expected="0 or more", fix=f"choose another {name}")
    network, weights = read_landmark_cnn(options.checkpoint)
    faces = open_faces(filesystem.absolute(options.faces), options.color_order, IMAGE_SIZE)
    num_landmarks = len(network.state_dict()["output_layer.1.bias"]) // 2
    cache_key = CacheKey(weights, faces.fingerprint, options.color_order, num_landmarks, faces.num_images)
    folder = filesystem.absolute(options.out) if options.out else default_folder(faces, weights)
    device = options.device if options.workers else str(inference_device(options.device))
    job = CacheJob(faces, cache_key, network, folder, device)
    apply: Apply = cache_in_process
    if options.workers:
        apply = partial(cache_on_ray, workers=options.workers)
    with log_to(LineHandler()):
        cache_landmarks(job, apply, max_bad=options.max_bad, source=options.checkpoint)
    print(f"{folder}: {num_landmarks} landmarks of {faces.num_images:,} records")  # noqa: T201


def _parse(description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="the later landmarks.weights: a stage-1 run or checkpoint")
    add("faces", help="the set, as data.path")
    add("--out", metavar="FOLDER", help="for landmarks.cache (default: a folder beside the set)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="as data.color_order")
    add("--workers", type=int, default=0, help="Ray actors; 0: this process (default)")
    add("--device", default="cpu", help="cpu, or cuda: a GPU for each worker (default cpu)")
    add("--max-bad", type=int, default=100, help="tolerated damaged records (default 100)")
    return parser.parse_args(arguments)
