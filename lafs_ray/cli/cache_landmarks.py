"""`lafs cache-landmarks`: the landmarks of a set, computed once."""

from __future__ import annotations

import re
from argparse import Namespace
from functools import partial

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.bad_records import parse_max_bad
from lafs_ray.data.external_landmarks import ExternalOptions, import_landmarks
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import CacheKey
from lafs_ray.data.points_table import PointsTable
from lafs_ray.engine.console import LineHandler, log_to
from lafs_ray.engine.ray_tasks import cache_on_ray
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show
from lafs_ray.training.checkpoint.inference import inference_device
from lafs_ray.training.tasks.build_landmark_cache import (
    Apply,
    CacheJob,
    cache_in_process,
    cache_landmarks,
    default_folder,
    read_landmark_cnn,
)


def cache_job(options: Namespace) -> None:
    """Compute and store the landmarks of a set.

    Raises:
        UserError: an error in the arguments, the checkpoint or the data.
    """
    for name in ("workers", "max_missing"):
        if (value := getattr(options, name)) < 0:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, found=str(value), expected="0 or more", fix=f"choose another {option}")
    if options.points is not None:
        _import(options)
        return
    if options.checkpoint is None:
        raise ConfigError(
            "checkpoint",
            found=f"only {options.faces}",
            expected="a landmark CNN and a set, or --from POINTS.parquet and a set",
            fix="name the stage-1 run or checkpoint first",
        )
    max_bad = parse_max_bad("--max-bad", options.max_bad)
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
        cache_landmarks(job, apply, max_bad=max_bad.of(faces.num_images), source=options.checkpoint)
    show(f"{folder}: {num_landmarks} landmarks of {faces.num_images:,} records")


def _import(options: Namespace) -> None:
    """Make the cache of landmarks that another tool has found."""
    if options.checkpoint is not None:
        raise ConfigError(
            "--from",
            found=f"{options.points}, and a checkpoint: {options.checkpoint}",
            expected="landmarks of a tool, or of a landmark CNN",
            fix="leave out one of the two",
        )
    table = PointsTable(filesystem.absolute(options.points))
    faces = open_faces(filesystem.absolute(options.faces), options.color_order, IMAGE_SIZE)
    tool = re.sub(r"[^A-Za-z0-9]+", "-", options.tool or table.tool or "tool")
    name = f"landmarks-{tool}-{faces.fingerprint[:8]}"
    folder = options.out or filesystem.join(filesystem.parent(faces.shard_uris[0]), name)
    folder = filesystem.absolute(folder)
    how = ExternalOptions(options.tool, options.tool_version, options.images, options.max_missing)
    with log_to(LineHandler()):
        count, missing = import_landmarks(faces, options.color_order, table, folder, how)
    filled = f"; {missing:,} without got the mean of the others" if missing else ""
    show(f"{folder}: {count} landmarks of {faces.num_images:,} records{filled}")
