"""Landmarks found once for a whole set: made by one process or many, and taken into a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lafs_ray import __version__
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import IMAGE_SIZE
from lafs_ray.data.face_set import FaceRows, FaceSet
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import (
    Identity,
    Part,
    open_landmarks,
    plan_parts,
    read_entries,
    read_entry,
    write_part,
    write_stamp,
)
from lafs_ray.errors import CheckpointError, DataError
from lafs_ray.models.checkpoints.architecture import infer_architecture
from lafs_ray.models.checkpoints.state_dicts import hash_tensors, load_weights
from lafs_ray.training.tasks.init_weights import InitWeights, read_pretrained
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor

logger = logging.getLogger(__name__)

# Records read and decoded at once, while the CNN works on those before: a few MB.
_CHUNK = 256
_LOG_EVERY_S = 10.0


@dataclass(frozen=True, eq=False)
class CacheJob:
    """What to find landmarks of, by which network, and where to put them; travels to workers.

    Args:
        faces: the set.
        identity: of set and weights.
        network: the landmark CNN, on the CPU.
        folder: of the cache, as all machines reach it.
        device: where to compute.
    """

    faces: FaceSet
    identity: Identity
    network: nn.Module
    folder: str
    device: str = "cpu"


Apply = Callable[[CacheJob, Sequence[Part]], Iterator[Part]]
"""Makes parts in any order and in any process, and names each when its file is there."""


def default_folder(faces: FaceSet, weights: str) -> str:
    """Where landmarks of a set are stored unless told otherwise: beside its first shard."""
    name = f"landmarks-{weights[:8]}-{faces.fingerprint[:8]}"
    return filesystem.absolute(filesystem.join(filesystem.parent(faces.shard_uris[0]), name))


def read_landmark_cnn(path: str) -> tuple[nn.Module, str]:
    """The landmark CNN of a run, a checkpoint or a published one, and the hash of its weights.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no landmark CNN.
    """
    source = read_pretrained("the landmark CNN", path)
    if not source.landmarks:
        raise CheckpointError(
            path,
            found="no landmark CNN",
            expected="a stage-1 run, or another checkpoint with a landmark CNN",
            fix="name the checkpoint that landmarks.weights will have",
        )
    architecture = source.architecture or infer_architecture(source.landmarks, path)
    network = architecture.build_landmark_cnn()
    load_weights(network, source.landmarks)
    return network, hash_tensors(network.state_dict())


def cache_landmarks(job: CacheJob, apply: Apply, *, max_bad: int, source: str) -> None:
    """Find the landmarks of every record that has none yet, and declare the cache finished.

    Args:
        job: what to do.
        apply: makes the missing parts, here or on Ray.
        max_bad: records that may be damaged before it counts as a mistake.
        source: where the weights came from, for people.

    Raises:
        DataError: the folder holds landmarks of something else, too many records are damaged, or a
            file cannot be read or written.
    """
    parts = plan_parts(job.faces.shard_starts)
    done = read_entries(job.folder, job.identity, parts)
    total = f"{job.faces.num_images:,}"
    logger.info("%s records in %d parts, to %s", total, len(parts), job.folder)
    if done:
        logger.info("%d of %d parts are complete already", len(done), len(parts))
    missing = [part for part in parts if part not in done]
    if missing:
        filesystem.require_writable(job.folder)
    rows, damaged = (sum(getattr(e, name) for e in done.values()) for name in ("rows", "damaged"))
    for part in apply(job, missing):
        entry = read_entry(job.folder, job.identity, part)
        assert entry is not None, f"{part.name} was written and cannot be read"
        done[part] = entry
        rows, damaged = rows + entry.rows, damaged + entry.damaged
        logger.info("%s of %s records", f"{rows:,}", total)
        if damaged > max_bad:
            raise DataError(
                "damaged records",
                found=f"{damaged} so far; {first_damaged(job, part)}",
                expected=f"at most {max_bad}",
                fix="check the path and --color-order, or raise --max-bad",
            )
    details = {"checkpoint": source, "device": job.device, "lafs_ray": __version__}
    write_stamp(job.folder, job.identity, [done[part] for part in parts], details)


def cache_in_process(job: CacheJob, parts: Sequence[Part]) -> Iterator[Part]:
    """`Apply` in this process; logs its speed every ten seconds.

    Args:
        job: what to do.
        parts: the missing ones.
    """
    find = LandmarkPredictor(job.network, job.device)
    begin = logged = time.monotonic()
    count = 0

    def seen(rows: int) -> None:
        nonlocal count, logged
        count += rows
        if (now := time.monotonic()) - logged >= _LOG_EVERY_S:
            logged = now
            logger.info("  %s: %.0f records/s", part.name, count / (now - begin))

    for part in parts:
        make_part(job, part, find, seen)
        yield part


def make_part(
    job: CacheJob,
    part: Part,
    find: LandmarkPredictor,
    seen: Callable[[int], object] = lambda _: None,
) -> None:
    """Find the landmarks of a part's images and write its file.

    Args:
        job: what to do.
        part: which images.
        find: the frozen landmark CNN.
        seen: told the number of images that are done with.
    """
    keys, landmarks = [], []
    for rows in _read_ahead(job.faces, part):
        keys.append(rows.key)
        landmarks.append(_landmarks(job, rows, find))
        seen(len(rows.key))
    write_part(job.folder, job.identity, part, np.concatenate(keys), np.concatenate(landmarks))


def _read_ahead(faces: FaceSet, part: Part) -> Iterator[FaceRows]:
    """The part's records, chunk by chunk; a thread reads the next while one is in use."""
    starts = range(part.first, part.stop, _CHUNK)

    def read(start: int) -> FaceRows:
        return faces.read(np.arange(start, min(start + _CHUNK, part.stop)))

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        ahead = reader.submit(read, starts[0])
        for following in [*starts[1:], None]:
            ready = ahead.result()
            if following is not None:
                ahead = reader.submit(read, following)
            yield ready


def _landmarks(job: CacheJob, rows: FaceRows, find: LandmarkPredictor) -> NDArray[np.float32]:
    """Landmarks of some records, float32 [n, N, 2]; NaN where a record is damaged."""
    size = job.identity.num_landmarks
    found = np.full((len(rows.images), size, 2), np.nan, dtype=np.float32)
    sound, images = [], []
    for row in range(len(rows.images)):
        image = _decoded(job, rows, row)
        if image is not None:
            sound.append(row)
            images.append(image)
    if images:
        planes = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(job.device)
        found[sound] = find(planes).cpu().numpy()
    return found


def _decoded(job: CacheJob, rows: FaceRows, row: int) -> NDArray[np.uint8] | None:
    if rows.errors[row]:
        return None
    try:
        return decode_image(rows.images[row], color_order=job.identity.color_order, size=IMAGE_SIZE)
    except DataError:
        return None


def first_damaged(job: CacheJob, part: Part) -> str:
    """Where the first damaged record of a part is, for a message."""
    for rows in _read_ahead(job.faces, part):
        for row in range(len(rows.images)):
            if _decoded(job, rows, row) is None:
                where = f"{job.faces.shard_uris[rows.shard[row]]}, record {rows.key[row]}"
                return f"in {part.name} the first is {where}"
    return f"none in {part.name}"


def with_cached_landmarks(
    config: PretrainConfig, faces: FaceSet, init_weights: InitWeights
) -> FaceSet:
    """Return the set, with its cached landmarks if the run uses them.

    Raises:
        DataError: they are missing, not finished, damaged, or of other weights or faces.
    """
    if config.landmarks.source != "cached":
        return faces
    assert init_weights.landmarks_hash is not None, "the configuration requires a checkpoint"
    data, given = config.data, config.landmarks.cache
    identity = Identity(
        init_weights.landmarks_hash,
        faces.fingerprint,
        data.color_order,
        config.model.num_landmarks,
        faces.num_images,
    )
    folder = given or default_folder(faces, init_weights.landmarks_hash)
    command = f"python jobs/cache_landmarks.py {config.landmarks.weights} {data.path}"
    command += f" --color-order {data.color_order}" if data.color_order != "rgb" else ""
    command += f" --out {given}" if given else ""
    return replace(faces, landmarks=open_landmarks(folder, identity, command))
