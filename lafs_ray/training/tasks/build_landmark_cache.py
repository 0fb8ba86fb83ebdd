"""Build the landmark cache of a whole set, in one process or many, and open it for a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lafs_ray import __version__
from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.data import NamedSet
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.face_set import FaceRows, FaceSet
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import (
    CacheKey,
    LandmarkCache,
    Part,
    cached_weights,
    open_landmarks,
    plan_parts,
    read_entries,
    read_entry,
    write_part,
    write_stamp,
)
from lafs_ray.data.mirror_order import MirrorOrder, mirror_order
from lafs_ray.data.shard import spread
from lafs_ray.errors import CheckpointError, DataError
from lafs_ray.models.checkpoints.architecture import infer_architecture
from lafs_ray.models.checkpoints.state_dicts import hash_tensors, load_weights
from lafs_ray.models.landmark_template import is_template
from lafs_ray.training.input_pipeline import read_ahead
from lafs_ray.training.tasks.init_weights import InitWeights, read_pretrained
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor

logger = logging.getLogger(__name__)

# Records read and decoded at once, while the CNN processes those before: a few MB.
_ROWS_PER_READ = 256
_LOG_EVERY_S = 10.0
_ROWS_FOR_MEAN = 256


@dataclass(frozen=True, eq=False)
class CacheJob:
    """The faces, the network and the folder of a cache; it is sent to workers.

    Args:
        faces: the set.
        cache_key: of set and weights.
        network: the landmark CNN, on the CPU.
        folder: of the cache, as all machines reach it.
        device: where to compute.
    """

    faces: FaceSet
    cache_key: CacheKey
    network: nn.Module
    folder: str
    device: str = "cpu"


Apply = Callable[[CacheJob, Sequence[Part]], Iterator[Part]]
"""Makes parts in any order and process, and yields each once its file is written."""


def default_folder(faces: FaceSet, weights: str) -> str:
    """Return the default folder of a set's landmarks: next to its first shard."""
    name = f"landmarks-{weights[:8]}-{faces.fingerprint[:8]}"
    return filesystem.absolute(filesystem.join(filesystem.parent(faces.shard_uris[0]), name))


def read_landmark_cnn(path: str) -> tuple[nn.Module, str]:
    """Read the landmark CNN of a run or checkpoint (ours or published), and hash its weights.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no landmark CNN.
    """
    source = read_pretrained("the landmark CNN", path)
    if not source.landmarks or is_template(source.landmarks):
        raise CheckpointError(
            path,
            found="template landmarks, which need no cache" if source.landmarks else "no landmark CNN",
            expected="a stage-1 run, or another checkpoint with a landmark CNN",
            fix="use the checkpoint that landmarks.weights will name",
        )
    architecture = source.architecture or infer_architecture(source.landmarks, path)
    network = architecture.build_landmark_cnn()
    load_weights(network, source.landmarks)
    return network, hash_tensors(network.state_dict())


def cache_landmarks(job: CacheJob, apply: Apply, *, max_bad: int, source: str) -> None:
    """Predict the landmarks of every record that has none yet, then mark the cache complete.

    Args:
        job: what to predict.
        apply: makes the missing parts, here or on Ray.
        max_bad: the most damaged records that are allowed.
        source: where the weights came from, for the stamp.

    Raises:
        DataError: the folder has landmarks of other faces or weights, too many records are damaged, or a file cannot be
            read or written.
    """
    parts = plan_parts(job.faces.shard_starts)
    done = read_entries(job.folder, job.cache_key, parts)
    total = f"{job.faces.num_images:,}"
    logger.info("%s records in %d parts, to %s", total, len(parts), job.folder)
    if done:
        logger.info("%d of %d parts are complete already", len(done), len(parts))
    missing = [part for part in parts if part not in done]
    if missing:
        filesystem.require_writable(job.folder)
    rows, damaged = (sum(getattr(e, name) for e in done.values()) for name in ("rows", "damaged"))
    for part in apply(job, missing):
        entry = read_entry(job.folder, job.cache_key, part)
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
    write_stamp(job.folder, job.cache_key, [done[part] for part in parts], details)


def cache_in_process(job: CacheJob, parts: Sequence[Part]) -> Iterator[Part]:
    """`Apply` in this process; logs its speed every ten seconds.

    Args:
        job: what to predict.
        parts: the missing ones.
    """
    predictor = LandmarkPredictor(job.network, job.device)
    begin = logged = time.monotonic()
    count = 0

    def progress(rows: int) -> None:
        nonlocal count, logged
        count += rows
        if (now := time.monotonic()) - logged >= _LOG_EVERY_S:
            logged = now
            logger.info("  %s: %.0f records/s", part.name, count / (now - begin))

    for part in parts:
        make_part(job, part, predictor, progress)
        yield part


def make_part(
    job: CacheJob, part: Part, predictor: LandmarkPredictor, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Predict the landmarks of a part's images and write its file.

    Args:
        job: what to predict.
        part: which images.
        predictor: the frozen landmark CNN.
        progress: gets the number of images after each read.
    """
    keys, landmarks = [], []
    for rows in _rows_of(job.faces, part):
        keys.append(rows.key)
        landmarks.append(_landmarks(job, rows, predictor))
        progress(len(rows.key))
    write_part(job.folder, job.cache_key, part, np.concatenate(keys), np.concatenate(landmarks))


def _rows_of(faces: FaceSet, part: Part) -> Iterator[FaceRows]:
    """Yield the part's records, a few at once, reading ahead."""

    def read(start: int) -> FaceRows:
        return faces.read(np.arange(start, min(start + _ROWS_PER_READ, part.stop)))

    for _, rows in read_ahead(read, range(part.first, part.stop, _ROWS_PER_READ)):
        yield rows


def _landmarks(job: CacheJob, rows: FaceRows, predictor: LandmarkPredictor) -> NDArray[np.float32]:
    """Predict landmarks of some records, float32 [n, N, 2]; NaN where a record is damaged."""
    landmarks = np.full((len(rows.images), job.cache_key.num_landmarks, 2), np.nan, np.float32)
    decoded = ((row, _decoded(job, rows, row)) for row in range(len(rows.images)))
    images = {row: image for row, image in decoded if image is not None}
    if images:
        pixels = torch.from_numpy(np.stack(list(images.values())))
        planes = pixels.permute(0, 3, 1, 2).to(job.device)
        landmarks[list(images)] = predictor(planes).cpu().numpy()
    return landmarks


def _decoded(job: CacheJob, rows: FaceRows, row: int) -> NDArray[np.uint8] | None:
    if rows.errors[row]:
        return None
    try:
        return decode_image(rows.images[row], color_order=job.cache_key.color_order, size=IMAGE_SIZE)
    except DataError:
        return None


def first_damaged(job: CacheJob, part: Part) -> str:
    """Return where the first damaged record of a part is, for a message."""
    for rows in _rows_of(job.faces, part):
        for row in range(len(rows.images)):
            if _decoded(job, rows, row) is None:
                where = f"{job.faces.shard_uris[rows.shard[row]]}, record {rows.key[row]}"
                return f"in {part.name} the first is {where}"
    return f"none in {part.name}"


def with_cached_landmarks(
    config: PretrainConfig | LandmarkConfig, one: NamedSet, faces: FaceSet, init_weights: InitWeights
) -> FaceSet:
    """Return one of the run's sets, with its cached landmarks if the run uses them; in pretraining also mirrored.

    Args:
        config: of the run.
        one: the set, as configured.
        faces: the set, opened.
        init_weights: of the run.

    Raises:
        DataError: they are missing, incomplete, damaged, or of other weights or faces.
    """
    source: str | None = None
    if isinstance(config, PretrainConfig):
        if config.landmarks.source != "cached":
            return faces
        source = config.landmarks.weights
    cache, color_order = one.landmarks or config.landmarks.cache, one.color_order
    # Landmarks of another tool are identified by themselves.
    weights = init_weights.landmarks_hash if source is not None or cache is None else cached_weights(cache)
    assert weights is not None, "the configuration requires a checkpoint or a cache"
    cache_key = CacheKey(weights, faces.fingerprint, color_order, config.model.num_landmarks, faces.num_images)
    folder = cache or default_folder(faces, weights)
    command = f"lafs cache-landmarks {source or '--from POINTS.parquet'} {one.path}"
    command += f" --color-order {color_order}" if color_order != "rgb" else ""
    command += f" --out {cache}" if cache else ""
    cache_of_set = open_landmarks(folder, cache_key, command)
    if not isinstance(config, PretrainConfig):
        return replace(faces, landmarks=cache_of_set)
    return replace(faces, landmarks=cache_of_set, mirror_order=_mirror_order(cache_of_set, faces.num_images))


def _mirror_order(landmarks: LandmarkCache, num_images: int) -> MirrorOrder:
    """Return the mirror order of the mean of faces spread over a set."""
    some = landmarks.read(spread(num_images, _ROWS_FOR_MEAN)).astype(np.float64)
    sound = some[~np.isnan(some).any(axis=(1, 2))]
    # Without a sound face among them any order will do: a run on such a set ends at its bad records.
    return mirror_order(sound.mean(axis=0) if len(sound) else np.zeros(some.shape[1:]))
