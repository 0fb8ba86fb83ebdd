"""Cached landmarks: ranged reads, atomic parts, one set and one network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lafs_ray.data import landmark_cache
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import (
    STAMP,
    CacheKey,
    open_landmarks,
    plan_parts,
    read_entries,
    write_part,
    write_stamp,
)
from lafs_ray.errors import DataError
from tests.object_store import ObjectStore

STARTS = np.array([0, 70, 100], dtype=np.int64)
KEY = CacheKey("w" * 32, "f" * 32, "rgb", 9, 100)
COMMAND = "lafs cache-landmarks W S"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_cache, "PART_ROWS", 32)


def values() -> NDArray[np.float32]:
    found = np.random.default_rng(0).uniform(0, 111, (100, 9, 2)).astype(np.float32)
    found[40] = np.nan
    return found


def write(folder: str, cache_key: CacheKey = KEY, stamp: bool = True) -> None:
    parts, landmarks = plan_parts(STARTS), values()
    for part in parts:
        rows = slice(part.first, part.stop)
        write_part(folder, cache_key, part, np.arange(part.first, part.stop) + 1, landmarks[rows])
    if stamp:
        entries = read_entries(folder, cache_key, parts)
        write_stamp(folder, cache_key, [entries[part] for part in parts], {"checkpoint": "x"})


def test_parts__cover_every_shard_in_order() -> None:
    """No part holds images of two shards, and none is longer than PART_ROWS."""
    limits = [(part.first, part.stop) for part in plan_parts(STARTS)]
    assert limits == [(0, 32), (32, 64), (64, 70), (70, 100)]
    assert plan_parts(STARTS)[2].name == "part-00002-of-00004.safetensors"


def test_read__any_rows_in_any_order(tmp_path: Path) -> None:
    """Rows by number, repeats and damaged ones too, are the numbers written, in float16."""
    write(str(tmp_path))
    cache = open_landmarks(str(tmp_path), KEY, COMMAND)
    expected = values().astype(np.float16)
    for index in (np.arange(100), np.array([99, 0, 31, 32, 32, 69, 70, 40]), np.array([5])):
        found = cache.read(index)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected[index])
    assert sum(part.damaged for part in cache.parts) == 1


def test_part__is_a_file_that_others_can_read(tmp_path: Path) -> None:
    """Safetensors with the records' keys and float16 landmarks."""
    write(str(tmp_path))
    tensors = load_file(tmp_path / "part-00003-of-00004.safetensors")
    assert tensors["keys"].tolist() == list(range(71, 101))
    assert tensors["landmarks"].dtype == np.float16
    np.testing.assert_array_equal(tensors["landmarks"], values()[70:].astype(np.float16))


def test_read__from_an_object_store(store: ObjectStore) -> None:
    """The same rows over S3, and of each part no more bytes than those rows."""
    folder = filesystem.join(store.uri("faces"), "cached")
    write(folder)
    cache = open_landmarks(folder, KEY, COMMAND)
    store.reset()
    index = np.array([3, 80, 33])
    np.testing.assert_array_equal(cache.read(index), values()[index].astype(np.float16))
    ranges = [request.byte_range for request in store.requests if request.byte_range is not None]
    assert [stop - start for start, stop in ranges] == [36, 36, 36]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"weights": "v" * 32}, "landmark CNN with other weights"),
        ({"faces": "g" * 32}, "another set of faces"),
        ({"color_order": "bgr"}, "another color order: rgb -> bgr"),
        ({"images": 101}, "another number of records: 100 -> 101"),
    ],
)
def test_open__of_something_else(tmp_path: Path, change: dict[str, object], found: str) -> None:
    """Landmarks of other weights, another set or color order are refused, complete or not."""
    write(str(tmp_path))
    needed = replace(KEY, **change)  # type: ignore[arg-type]
    with pytest.raises(DataError) as raised:
        open_landmarks(str(tmp_path), needed, COMMAND)
    assert found in raised.value.found
    assert COMMAND in raised.value.fix
    with pytest.raises(DataError) as raised:
        read_entries(str(tmp_path), needed, plan_parts(STARTS))
    assert found in raised.value.found


def lose(folder: Path) -> None:
    (folder / "part-00001-of-00004.safetensors").unlink()


def truncate(folder: Path) -> None:
    path = folder / "part-00001-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def forget(folder: Path) -> None:
    path = folder / STAMP
    content = json.loads(path.read_text())
    content["parts"].pop(1)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lose, "no such file"),
        (truncate, " bytes"),
        (forget, "parts that do not cover 100 records"),
        (lambda folder: (folder / STAMP).write_text("{}"), "another format or version"),
        (lambda folder: (folder / STAMP).unlink(), "incomplete cached landmarks"),
    ],
    ids=["part missing", "part truncated", "part not listed", "foreign stamp", "unfinished"],
)
def test_open__with_records_missing(tmp_path: Path, damage: Callable[[Path], object], found: str) -> None:
    """An incomplete cache is refused, with the file and a fix."""
    write(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(DataError) as raised:
        open_landmarks(str(tmp_path), KEY, COMMAND)
    assert found in raised.value.found
    assert COMMAND in raised.value.fix
    assert str(tmp_path) in raised.value.subject


def test_open__where_there_is_none(tmp_path: Path) -> None:
    """The message has the command to create one."""
    with pytest.raises(DataError, match="no cached landmarks") as raised:
        open_landmarks(str(tmp_path / "nowhere"), KEY, COMMAND)
    assert raised.value.fix == f"run {COMMAND}"


def test_entries__a_damaged_part_is_written_again(tmp_path: Path) -> None:
    """A truncated part counts as missing."""
    write(str(tmp_path), stamp=False)
    truncate(tmp_path)
    names = [part.name[:10] for part in read_entries(str(tmp_path), KEY, plan_parts(STARTS))]
    assert names == ["part-00000", "part-00002", "part-00003"]


def test_read__of_a_part_that_changes_meanwhile(tmp_path: Path) -> None:
    """A cache that is rewritten during a run is an error that names the part."""
    write(str(tmp_path))
    cache = open_landmarks(str(tmp_path), KEY, COMMAND)
    truncate(tmp_path)
    with pytest.raises(DataError, match="part-00001") as raised:
        cache.read(np.array([35]))
    assert "when the set was opened" in raised.value.expected


def test_one_flipped_bit_anywhere(tmp_path: Path) -> None:
    """A flipped bit of a part or the stamp is named, or changes no landmarks; such a part is written again."""
    write(str(tmp_path))
    part = plan_parts(STARTS)[1]
    generator, index, expected = np.random.default_rng(5), np.arange(100), values().astype(np.float16)
    for name, fewest_refused in ((part.name, 350), (STAMP, 0)):
        path = tmp_path / name
        content, named, refused = path.read_bytes(), 0, 0
        for position in generator.integers(len(content), size=400).tolist():
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            try:
                np.testing.assert_array_equal(open_landmarks(str(tmp_path), KEY, COMMAND).read(index), expected)
            except DataError as error:
                named += str(tmp_path) in str(error)
            with contextlib.suppress(DataError):  # Of other weights or faces, by one digit.
                refused += part not in read_entries(str(tmp_path), KEY, plan_parts(STARTS))
        path.write_bytes(content)
        assert named > 200
        assert refused >= fewest_refused


def test_read__landmarks_that_change_after_opening(tmp_path: Path) -> None:
    """The record is named whose landmarks on the disk are others than those written."""
    write(str(tmp_path))
    cache = open_landmarks(str(tmp_path), KEY, COMMAND)
    path = tmp_path / "part-00001-of-00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-36:] = bytes(36)
    path.write_bytes(content)
    assert cache.read(np.array([62])).shape == (1, 9, 2)
    with pytest.raises(DataError, match=r"part-00001.*\n.*record 63 that do not match their checksum"):
        cache.read(np.array([3, 63, 62]))


@pytest.mark.parametrize(
    "change",
    [{"name": "../part-00001-of-00004.safetensors"}, {"rows": "32"}, {"landmarks_offset": 600}, {"first": 32.5}],
)
def test_open__stamp_of_other_types_or_places(tmp_path: Path, change: dict[str, object]) -> None:
    """An entry that contradicts its part is refused: a wrong offset would train on other landmarks."""
    write(str(tmp_path))
    content = json.loads((tmp_path / STAMP).read_text())
    content["parts"][1].update(change)
    (tmp_path / STAMP).write_text(json.dumps(content))
    with pytest.raises(DataError, match=STAMP):
        open_landmarks(str(tmp_path), KEY, COMMAND)
