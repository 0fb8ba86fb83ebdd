"""Synthetic faces as files: training sets in insightface's layout, pair files, contact sheets.

For demos, tests and benchmarks that run anywhere, without a licensed dataset. Every image is a pure function of (seed,
identity, index): files do not depend on the number of processes, disjoint ranges of identities share none, and a few
numbers reproduce a set.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, pairwise
from multiprocessing import get_context
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.images import encode_jpeg
from lafs_ray.data.io import filesystem
from lafs_ray.data.progress import ProgressLog
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import DataError
from lafs_ray.synthetic.capture import Capture, sample_capture
from lafs_ray.synthetic.identity import Identity, sample_identity
from lafs_ray.synthetic.renderer import render_face

_PAIR_STREAM = 3
_FOLDS = 10
_ITEMS_PER_TASK = 4
_MAX_KEY = 1 << 24  # labels are float32 in the file, where larger keys are not exact

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
logger = logging.getLogger(__name__)


def encode_face(identity: Identity, capture: Capture) -> bytes:
    """Return the image as a JPEG of the capture's quality; decoders return it as RGB."""
    bgr = cv2.cvtColor(render_face(identity, capture), cv2.COLOR_RGB2BGR)
    return encode_jpeg(bgr, capture.jpeg_quality)


def write_faces(
    folder: str,
    *,
    num_identities: int,
    images_per_identity: int,
    seed: int,
    first_identity: int = 0,
    num_shards: int = 1,
    workers: int = 1,
) -> None:
    """Write a training set of the identities `first_identity`… in insightface's layout.

    One shard is `train.rec`; several are `train-00000-of-0000N.rec`…, each readable alone; together they have the
    labels 0…num_identities-1. `property` and `generated.json` (the arguments) are written next to them. The same
    arguments write the same bytes, for any number of `workers`.

    Args:
        folder: path or URI; it is created if missing.
        num_identities: number of identities.
        images_per_identity: images of each.
        seed: of the population.
        first_identity: number of the first identity in the population.
        num_shards: files; the images of an identity are in one of them.
        workers: processes.

    Raises:
        DataError: a number is out of range, or the folder holds another set.
    """
    _check_at_least(1, num_identities=num_identities, images_per_identity=images_per_identity)
    _check_at_least(1, workers=workers)
    _check_at_least(0, seed=seed, first_identity=first_identity)
    if not 1 <= num_shards <= num_identities:
        expected = f"1 to {num_identities}, the number of identities"
        raise _out_of_range("num_shards", num_shards, expected)
    num_records = 1 + num_identities * images_per_identity + num_identities
    if num_records > _MAX_KEY * num_shards:
        found = f"{num_shards} for {num_identities} × ({images_per_identity} + 1) records"
        raise _out_of_range("num_shards", found, f"at most {_MAX_KEY} records per shard")
    parameters: dict[str, object] = {
        "num_identities": num_identities,
        "images_per_identity": images_per_identity,
        "seed": seed,
        "first_identity": first_identity,
        "num_shards": num_shards,
    }
    _check_foreign_records(folder)
    _write_parameters(filesystem.join(folder, "generated.json"), parameters)
    render = partial(_render_identity, seed, images_per_identity)
    numbers = range(first_identity, first_identity + num_identities)
    images = map_in_order(render, numbers, workers=workers, unit="identities")
    bounds = [num_identities * shard // num_shards for shard in range(num_shards + 1)]
    for shard, (first, stop) in enumerate(pairwise(bounds)):
        name = "train.rec" if num_shards == 1 else f"train-{shard:05}-of-{num_shards:05}.rec"
        uri = filesystem.join(folder, name)
        _write_shard(uri, islice(images, stop - first), images_per_identity, first, stop)
    with filesystem.atomic_write(filesystem.join(folder, "property")) as file:
        file.write(f"{num_identities},{IMAGE_SIZE},{IMAGE_SIZE}".encode())


def _write_shard(uri: str, faces: Iterator[list[bytes]], images_per_identity: int, first: int, stop: int) -> None:
    """Write one `.rec` with labels first…stop-1: header, images, key range of each identity."""
    first_key = 1 + (stop - first) * images_per_identity
    with RecordWriter(uri) as writer:
        identity_keys = (float(first_key), float(first_key + stop - first))
        writer.write(0, pack(Header(2, identity_keys, 0), b""))
        key = 1
        for label, images in zip(range(first, stop), faces, strict=True):
            for image in images:
                writer.write(key, pack(Header(0, float(label), key), image))
                key += 1
        for number in range(stop - first):
            start = 1 + number * images_per_identity
            image_keys = (float(start), float(start + images_per_identity))
            key = first_key + number
            writer.write(key, pack(Header(2, image_keys, key), b""))


def write_pair_file(path: str, *, identities: range, num_pairs: int, seed: int, workers: int = 1) -> None:
    """Write balanced verification pairs in insightface's `.bin` order.

    Ten folds, each with positive pairs first and as many negative pairs; every image occurs once. The same arguments
    write the same bytes; they are recorded in `path` + `.json`.

    Args:
        path: path or URI of the `.bin`.
        identities: disjoint from those of the training set.
        num_pairs: a multiple of 20.
        seed: of the population, as in `write_faces`.
        workers: processes.

    Raises:
        DataError: a number is out of range, or the path holds other pairs.
    """
    _check_at_least(1, num_pairs=num_pairs, workers=workers)
    _check_at_least(0, seed=seed, first_identity=identities.start)
    if num_pairs % (2 * _FOLDS):
        raise _out_of_range("num_pairs", num_pairs, f"a multiple of {2 * _FOLDS} (10 folds)")
    if len(identities) < 2:
        raise _out_of_range("identities", f"{len(identities)} in {identities}", "at least 2")
    if filesystem.exists(path) and not filesystem.exists(path + ".json"):
        fix = "choose another path"
        raise DataError(path, found="pairs of another origin", expected="a path that does not exist yet", fix=fix)
    label_range = {"first": identities.start, "stop": identities.stop, "step": identities.step}
    _write_parameters(path + ".json", {"identities": label_range, "num_pairs": num_pairs, "seed": seed})
    same = np.tile(np.repeat([True, False], num_pairs // (2 * _FOLDS)), _FOLDS)
    rng = np.random.default_rng([seed, _PAIR_STREAM, identities.start, identities.stop])
    left = rng.integers(len(identities), size=num_pairs)
    other = (left + rng.integers(1, len(identities), size=num_pairs)) % len(identities)
    pairs = np.stack([left, np.where(same, left, other)], axis=1)
    items = list(enumerate(np.array(identities, dtype=np.int64)[pairs].ravel().tolist()))
    images = map_in_order(partial(_render_image, seed), items, workers=workers, unit="pair images")
    write_pairs(path, list(images), same)


def contact_sheet(seed: int, identities: Sequence[int], images_per_identity: int) -> npt.NDArray[np.uint8]:
    """Return images as a grid, one identity per row, RGB uint8 [rows·112, columns·112, 3]."""
    rows = []
    for number in identities:
        identity = sample_identity(seed, number)
        captures = [sample_capture(seed, number, index) for index in range(images_per_identity)]
        rows.append(np.concatenate([render_face(identity, one) for one in captures], axis=1))
    return np.concatenate(rows)


def _render_identity(seed: int, images_per_identity: int, number: int) -> list[bytes]:
    return [_render_image(seed, (index, number)) for index in range(images_per_identity)]


def _render_image(seed: int, item: tuple[int, int]) -> bytes:
    index, number = item
    return encode_face(sample_identity(seed, number), sample_capture(seed, number, index))


def map_in_order(
    task: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int, unit: str
) -> Iterator[_Result]:
    """Yield the results in the order of the items, computed by this process or by several."""
    progress = ProgressLog(logger, unit, len(items))
    with contextlib.ExitStack() as stack:
        results: Iterable[_Result] = map(task, items)
        if workers > 1:
            # spawn: the caller may hold threads (OpenCV, torch, Ray), and fork copies their locks.
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,))
            )
            results = pool.map(task, items, chunksize=_ITEMS_PER_TASK)
        for result in results:
            progress.add()
            yield result


def _check_at_least(minimum: int, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < minimum:
            raise _out_of_range(name, value, f"at least {minimum}")


def _out_of_range(name: str, found: object, expected: str) -> DataError:
    return DataError(name, found=str(found), expected=expected, fix=f"change {name}")


def _check_foreign_records(folder: str) -> None:
    """Reject a folder with records, or other files of the names written, that this module has not written."""
    names = filesystem.list_names(folder)
    records = [name for name in names if name.endswith((".rec", ".idx")) or name in ("property", "contact_sheet.png")]
    if records and "generated.json" not in names:
        raise DataError(
            folder,
            found=f"{', '.join(records[:5])} without generated.json",
            expected="an empty folder, or one with the same synthetic set",
            fix="choose another folder",
        )


def _write_parameters(uri: str, parameters: dict[str, object]) -> None:
    """Record the parameters before the data, so that a killed process may be restarted.

    Raises:
        DataError: a set with other parameters exists.
    """
    text = json.dumps(parameters, indent=1) + "\n"
    if filesystem.exists(uri):
        before = filesystem.read_bytes(uri).decode("utf-8", "replace")
        if before != text:
            raise DataError(
                uri,
                found=" ".join(before.split()),
                expected=" ".join(text.split()),
                fix="choose another path, or delete the existing set",
            )
        return
    with filesystem.atomic_write(uri) as file:
        file.write(text.encode())
