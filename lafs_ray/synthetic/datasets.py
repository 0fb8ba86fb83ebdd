"""Generated faces as files: training sets in insightface's layout, pair files, contact sheets.

For demos, tests and benchmarks that must run anywhere, without a data set that needs a license.
Every picture is a pure function of (seed, identity, index): files do not depend on how many
processes drew them, two ranges of identities share nobody, a few numbers make a set again.
`lafs_ray.synthetic` draws; see there for what a face is made of.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from lafs_ray.data.io import filesystem
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import DataError
from lafs_ray.synthetic.capture import Capture, sample_capture
from lafs_ray.synthetic.identity import Identity, sample_identity
from lafs_ray.synthetic.renderer import IMAGE_SIDE, render_face, true_landmarks

__all__ = [
    "Capture",
    "Identity",
    "contact_sheet",
    "encode_face",
    "render_face",
    "sample_capture",
    "sample_identity",
    "true_landmarks",
    "write_faces",
    "write_pair_file",
]

_PAIR_STREAM = 3
_FOLDS = 10
_IDENTITIES_PER_TASK = 4
_SHOTS_PER_TASK = 64
_MAX_KEY = 1 << 24  # labels are float32 in the file: beyond this, keys would no longer be exact

_Work = TypeVar("_Work")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def encode_face(identity: Identity, capture: Capture) -> bytes:
    """Return the picture as a JPEG of the capture's quality; it decodes to RGB (METHOD.md)."""
    bgr = cv2.cvtColor(render_face(identity, capture), cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, capture.jpeg_quality])
    assert encoded, "OpenCV was built without JPEG"
    return bytes(data.tobytes())


def write_faces(
    folder: str,
    *,
    num_identities: int,
    images_per_identity: int,
    seed: int,
    first_identity: int = 0,
    num_shards: int = 1,
    workers: int = 1,
    report: Callable[[str], object] = _log.info,
) -> None:
    """Write a training set of persons `first_identity`… in insightface's layout.

    One shard is `train.rec`; several are `train-00000-of-0000N.rec`…, each complete in itself, with
    the labels 0…num_identities-1 running on over them. `property` and `generated.json` (the
    arguments) lie beside. The same arguments write the same bytes again, for any `workers`.

    Args:
        folder: path or URI; it is made if missing.
        num_identities: persons.
        images_per_identity: pictures of each.
        seed: the population.
        first_identity: number of the first person in it.
        num_shards: files; persons are not divided between them.
        workers: processes that draw.
        report: told a line of text about ten times.

    Raises:
        DataError: a number is impossible, or the folder holds another set.
    """
    _check(num_identities=num_identities, images_per_identity=images_per_identity, workers=workers)
    _check_seed(seed, first_identity)
    if not 1 <= num_shards <= num_identities:
        expected = f"1 to {num_identities}, the number of identities"
        raise _impossible("num_shards", num_shards, expected)
    num_records = 1 + num_identities * images_per_identity + num_identities
    if num_records > _MAX_KEY * num_shards:
        found = f"{num_identities} × ({images_per_identity} + 1) records in {num_shards} shards"
        raise _impossible("num_shards", found, f"at most {_MAX_KEY} records a shard")
    parameters: dict[str, object] = {
        "num_identities": num_identities,
        "images_per_identity": images_per_identity,
        "seed": seed,
        "first_identity": first_identity,
        "num_shards": num_shards,
    }
    _refuse_foreign_records(folder)
    _claim(filesystem.join(folder, "generated.json"), parameters)
    draw = partial(_draw_identity, seed, images_per_identity)
    numbers = range(first_identity, first_identity + num_identities)
    bounds = [num_identities * shard // num_shards for shard in range(num_shards + 1)]
    with _in_order(draw, numbers, workers, _IDENTITIES_PER_TASK) as people:
        counted = _count_aloud(people, num_identities, "identities", report)
        for shard in range(num_shards):
            name = "train.rec" if num_shards == 1 else f"train-{shard:05}-of-{num_shards:05}.rec"
            first, stop = bounds[shard : shard + 2]
            _write_shard(
                filesystem.join(folder, name),
                islice(counted, stop - first),
                images_per_identity,
                first,
                stop,
            )
    with filesystem.atomic_write(filesystem.join(folder, "property")) as file:
        file.write(f"{num_identities},{IMAGE_SIDE},{IMAGE_SIDE}".encode())


def _write_shard(
    uri: str, people: Iterator[list[bytes]], images_per_identity: int, first: int, stop: int
) -> None:
    """Write one `.rec` with the persons labeled first…stop-1: header, images, key ranges."""
    first_key = 1 + (stop - first) * images_per_identity
    with RecordWriter(uri) as writer:
        identity_keys = (float(first_key), float(first_key + stop - first))
        writer.write(0, pack(Header(2, identity_keys, 0), b""))
        key = 1
        for label, images in zip(range(first, stop), people, strict=True):
            for image in images:
                writer.write(key, pack(Header(0, float(label), key), image))
                key += 1
        for number in range(stop - first):
            start = 1 + number * images_per_identity
            image_keys = (float(start), float(start + images_per_identity))
            key = first_key + number
            writer.write(key, pack(Header(2, image_keys, key), b""))


def write_pair_file(
    path: str,
    *,
    identities: range,
    num_pairs: int,
    seed: int,
    workers: int = 1,
    report: Callable[[str], object] = _log.info,
) -> None:
    """Write balanced verification pairs in insightface's `.bin` order.

    Ten blocks, each half pairs of one person, then half pairs of two; every picture occurs once.
    The same arguments write the same bytes again; they stand in `path` + `.json`.

    Args:
        path: path or URI of the `.bin`.
        identities: the persons; take them outside the training set's.
        num_pairs: a multiple of 20.
        seed: the population, as in `write_faces`.
        workers: processes that draw.
        report: told a line of text about ten times.

    Raises:
        DataError: a number is impossible, or the path holds other pairs.
    """
    _check(num_pairs=num_pairs, workers=workers)
    _check_seed(seed, identities.start)
    if num_pairs % (2 * _FOLDS):
        raise _impossible("num_pairs", num_pairs, f"a multiple of {2 * _FOLDS} (10 halved blocks)")
    if len(identities) < 2:
        raise _impossible("identities", f"{len(identities)} in {identities}", "at least 2")
    persons = {"first": identities.start, "stop": identities.stop, "step": identities.step}
    _claim(path + ".json", {"identities": persons, "num_pairs": num_pairs, "seed": seed})
    same = np.tile(np.repeat([True, False], num_pairs // (2 * _FOLDS)), _FOLDS)
    people = _pair_people(identities, same, seed)
    shots = list(enumerate(people.ravel().tolist()))
    with _in_order(partial(_draw_shot, seed), shots, workers, _SHOTS_PER_TASK) as images:
        write_pairs(path, list(_count_aloud(images, len(shots), "pair images", report)), same)


def _pair_people(
    identities: range, same: npt.NDArray[np.bool_], seed: int
) -> npt.NDArray[np.int64]:
    """Who is on the two pictures of each pair, int64 [P,2]."""
    draw = np.random.default_rng([seed, _PAIR_STREAM, identities.start, identities.stop])
    left = draw.integers(len(identities), size=len(same))
    other = (left + draw.integers(1, len(identities), size=len(same))) % len(identities)
    right = np.where(same, left, other)
    people: npt.NDArray[np.int64] = np.array(identities)[np.stack([left, right], axis=1)]
    return people


def contact_sheet(
    seed: int, identities: Sequence[int], images_per_identity: int
) -> npt.NDArray[np.uint8]:
    """Return a table of pictures, one person a row, RGB uint8 [rows·112, columns·112, 3]."""
    rows = []
    for number in identities:
        person = sample_identity(seed, number)
        shots = [
            render_face(person, sample_capture(seed, number, index))
            for index in range(images_per_identity)
        ]
        rows.append(np.concatenate(shots, axis=1))
    return np.concatenate(rows)


def _draw_identity(seed: int, images_per_identity: int, number: int) -> list[bytes]:
    person = sample_identity(seed, number)
    return [
        encode_face(person, sample_capture(seed, number, index))
        for index in range(images_per_identity)
    ]


def _draw_shot(seed: int, shot: tuple[int, int]) -> bytes:
    index, number = shot
    return encode_face(sample_identity(seed, number), sample_capture(seed, number, index))


@contextlib.contextmanager
def _in_order(
    task: Callable[[_Work], _Result], work: Sequence[_Work], workers: int, tasks_at_once: int
) -> Iterator[Iterator[_Result]]:
    """Results in the order of the work, from this process or from several."""
    if workers == 1:
        yield map(task, work)
        return
    # spawn: the caller may hold threads (OpenCV, torch, Ray), and a fork would copy their locks.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield pool.map(task, work, chunksize=tasks_at_once)


def _count_aloud(
    results: Iterator[_Result], total: int, what: str, report: Callable[[str], object]
) -> Iterator[_Result]:
    """Pass results on and report after each tenth of them."""
    for count, result in enumerate(results, 1):
        if count * 10 // total > (count - 1) * 10 // total:
            report(f"{count}/{total} {what}")
        yield result


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise _impossible(name, value, "at least 1")


def _check_seed(seed: int, first_identity: int) -> None:
    if seed < 0 or first_identity < 0:
        found = f"seed {seed}, first identity {first_identity}"
        raise _impossible("seed and first identity", found, "numbers from 0 upwards")


def _impossible(name: str, found: object, expected: str) -> DataError:
    return DataError(name, found=str(found), expected=expected, fix=f"choose another {name}")


def _refuse_foreign_records(folder: str) -> None:
    """Refuse a folder with records that this module has not written."""
    names = filesystem.list_names(folder)
    records = [name for name in names if name.endswith((".rec", ".idx"))]
    if records and "generated.json" not in names:
        raise DataError(
            folder,
            found=f"{', '.join(records[:5])} without generated.json",
            expected="an empty folder, or one with the same generated set",
            fix="choose another folder",
        )


def _claim(uri: str, parameters: dict[str, object]) -> None:
    """Note what is about to be written, unless something else stands there.

    Written before the data, so that a run that was killed may be started again.

    Raises:
        DataError: a set with other parameters is there.
    """
    text = json.dumps(parameters, indent=1) + "\n"
    if filesystem.exists(uri):
        before = filesystem.read_bytes(uri).decode("utf-8", "replace")
        if before != text:
            raise DataError(
                uri,
                found=" ".join(before.split()),
                expected=" ".join(text.split()),
                fix="choose another folder, or delete what is there",
            )
        return
    with filesystem.atomic_write(uri) as file:
        file.write(text.encode())
