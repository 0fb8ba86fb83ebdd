"""Blocks of remote objects on a local disk."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import block_cache as cache_module
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.block_cache import BlockCache
from lafs_ray.errors import DataError
from tests.data.remote import put, rows_of
from tests.object_store import ObjectStore


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(cache_module, "_written", cache_module._Written())


def blocks(cache: BlockCache) -> list[Path]:
    return sorted(Path(cache.folder).rglob("*.block"))


def test_cache__second_epoch_asks_the_store_for_nothing(
    store: ObjectStore, on_s3: str, on_disk: Path, tmp_path: Path
) -> None:
    """With and without cache, in any order, the bytes are those of the disk; hits cost nothing."""
    cache = BlockCache(str(tmp_path / "cache"), 1 << 30)
    local, remote = open_faces(str(on_disk)), open_faces(on_s3, cache=cache)
    store.calm()
    order = np.random.default_rng(0).permutation(120)
    assert rows_of(remote, order) == rows_of(local, order)
    assert store.log()
    store.calm()
    for _ in range(2):
        order = np.random.default_rng(1).permutation(120)[:50]
        assert rows_of(remote, order) == rows_of(local, order)
    assert store.requests == []


def test_cache__neighboring_blocks_come_with_one_request(
    store: ObjectStore, on_s3: str, tmp_path: Path
) -> None:
    """Missing blocks side by side are read together, eight at most, and never twice."""
    cache = BlockCache(str(tmp_path / "cache"), 1 << 30)
    faces = open_faces(on_s3, cache=cache)
    store.calm()
    rows_of(faces, range(60))
    spans = sorted(one.span for one in store.log(ending="a.rec") if one.span)
    first, last = (
        int(faces.offsets[0]) // 4096,
        int(faces.offsets[59] + faces.sizes[59] - 1) // 4096,
    )
    assert len(spans) == -(-(last - first + 1) // 8)
    assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert len(blocks(cache)) == last - first + 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer"])
def test_cache__damaged_block_is_fetched_again(
    store: ObjectStore, on_s3: str, on_disk: Path, tmp_path: Path, damage: str
) -> None:
    """A checksum or length that does not fit is no hit: the store is asked and the block mended."""
    cache = BlockCache(str(tmp_path / "cache"), 1 << 30)
    local, remote = open_faces(str(on_disk)), open_faces(on_s3, cache=cache)
    rows_of(remote, range(120))
    path = blocks(cache)[3]
    sound = path.read_bytes()
    path.write_bytes(
        {
            "flipped": sound[:100] + bytes([sound[100] ^ 1]) + sound[101:],
            "cut": sound[:-1],
            "empty": b"",
            "longer": sound + b"\0",
        }[damage]
    )
    store.calm()
    assert rows_of(remote, range(120)) == rows_of(local, range(120))
    assert len(store.log()) == 1
    assert path.read_bytes() == sound


def test_cache__changed_object_is_not_served_stale(
    store: ObjectStore, on_disk: Path, tmp_path: Path
) -> None:
    """An exchanged object of the same size: a new set gets the new bytes, the open one stops.

    What the open set had read stays what it was; what it had not read is not taken from the other.
    """
    cache = BlockCache(str(tmp_path / "cache"), 1 << 30)
    uri = store.uri("faces/exchanged/a.rec")
    content = (on_disk / "a.rec").read_bytes()
    put(uri, content)
    put(uri.replace(".rec", ".idx"), (on_disk / "a.idx").read_bytes())
    faces = open_faces(uri, cache=cache)
    before = rows_of(faces, range(10))
    middle = int(faces.offsets[5]) + 200
    put(uri, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert rows_of(faces, range(10)) == before
    kept = blocks(cache)
    with pytest.raises(DataError, match=r"exchanged/a\.rec"):
        faces.read(np.arange(40, 60))
    assert blocks(cache) == kept, "bytes of the new object under the old one's name"
    after = rows_of(open_faces(uri, cache=cache), range(10))
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != 5 for i in range(10)]


def test_cache__limit_is_kept_and_oldest_go_first(tmp_path: Path) -> None:
    """However much is put, the blocks fit the limit; one that is read again and again stays."""
    cache = BlockCache(str(tmp_path), 40 * 4096)
    data = [bytes([number]) * 4096 for number in range(100)]
    for number in range(100):
        cache.put("s3://b/a.rec", "v", number, data[number])
        os.utime(blocks(cache)[0].parent)  # Something else in the folder changes nothing.
        assert cache.get("s3://b/a.rec", "v", 0, 4096) == data[0]
        assert sum(path.stat().st_size for path in blocks(cache)) <= cache.limit_bytes
    kept = [n for n in range(100) if cache.get("s3://b/a.rec", "v", n, 4096) is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 100))
    assert 30 <= len(kept) <= 40


def test_cache__full_or_forbidden_disk_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a block cannot be written the read goes on, and nothing half-written stays."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = BlockCache(str(tmp_path), 1 << 30)
    monkeypatch.setattr(os, "replace", refuse)
    cache.put("s3://b/a.rec", "v", 0, b"x" * 4096)
    assert cache.get("s3://b/a.rec", "v", 0, 4096) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"] == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        BlockCache(str(tmp_path / "file"), 1 << 30).open()


def _hammer(folder: str, seed: int) -> int:
    """Put and get in one process; returns the number of wrong answers."""
    cache, wrong = BlockCache(folder, 64 * 1024), 0
    rng = np.random.default_rng(seed)
    for block in rng.integers(0, 40, 300).tolist():
        expected = bytes([block]) * 4096
        found = cache.get("s3://b/a.rec", "v", block, 4096)
        wrong += found not in (None, expected)
        if found is None:
            cache.put("s3://b/a.rec", "v", block, expected)
    return wrong


def test_cache__four_processes_share_a_folder(tmp_path: Path) -> None:
    """Processes that write, read and delete the same blocks never see half a block."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        wrong = pool.starmap(_hammer, [(str(tmp_path), seed) for seed in range(4)])
    assert wrong == [0, 0, 0, 0]
    sizes = sum(path.stat().st_size for path in tmp_path.rglob("*.block"))
    # Each process may exceed the limit by what it writes between two looks, here one block.
    assert sizes <= 64 * 1024 + 4 * 4200
    assert list(tmp_path.rglob("*.partial")) == []


def test_cache__written_while_another_process_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks over the folder looks again for those who could not while it did."""
    cache = BlockCache(str(tmp_path), 10 * 4096)
    for block in range(12):
        cache.put("s3://b/a.rec", "v", block, bytes(4096))
    delete, late = BlockCache._delete_oldest, iter(range(100, 115))

    def delete_and_be_late(one: BlockCache) -> None:
        delete(one)
        for block in late:
            # Another description of the same lock, as another process has; it looks each time.
            one.put("s3://b/a.rec", "v", block, bytes(4096))

    monkeypatch.setattr(BlockCache, "_delete_oldest", delete_and_be_late)
    cache.put("s3://b/a.rec", "v", 12, bytes(4096))
    assert next(late, None) is None
    assert sum(path.stat().st_size for path in blocks(cache)) <= cache.limit_bytes
    assert not (tmp_path / "again").exists()


def test_cache__looking_ends_though_others_write_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is told to look again and again goes on with its own work after a second."""
    cache, looks = BlockCache(str(tmp_path), 10 * 4096), []

    def tell(one: BlockCache) -> None:
        looks.append(one)
        (tmp_path / "again").touch()
        time.sleep(0.01)

    monkeypatch.setattr(BlockCache, "_delete_oldest", tell)
    monkeypatch.setattr(cache_module, "_LONGEST_LOOK_S", 0.1)
    cache.put("s3://b/a.rec", "v", 0, bytes(4096))
    assert 1 < len(looks) <= 11
    assert (tmp_path / "again").exists()


def test_cache__shrinks_on_a_disk_that_takes_no_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the word to look again can be left, the oldest blocks go."""
    cache = BlockCache(str(tmp_path), 10 * 4096)
    for block in range(12):
        cache.put("s3://b/a.rec", "v", block, bytes(4096))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", refuse)
    cache = BlockCache(str(tmp_path), 5 * 4096)
    cache.shrink()
    assert 0 < sum(path.stat().st_size for path in blocks(cache)) <= cache.limit_bytes


def test_open_job__config_turns_it_on(store: ObjectStore, on_s3: str, tmp_path: Path) -> None:
    """data.cache.folder reaches the set of a run on a store, and is left out for a local one."""
    from lafs_ray.training.prepare import check_run
    from tests.training.faces import tiny

    settings = [f"data.cache.folder={tmp_path / 'cache'}", "data.cache.max_gb=0.5"]
    faces = check_run(tiny(tmp_path / "runs", on_s3, *settings)).faces
    assert faces.cache == BlockCache(str(tmp_path / "cache"), 500_000_000)
    faces.read(np.arange(3))
    assert blocks(faces.cache)
    assert filesystem.exists(str(tmp_path / "cache" / "README"))


def test_open_job__local_set_has_no_cache(on_disk: Path, tmp_path: Path) -> None:
    """What lies on a disk is not copied to a disk."""
    from lafs_ray.training.prepare import check_run
    from tests.training.faces import tiny

    settings = [f"data.cache.folder={tmp_path / 'cache'}"]
    assert check_run(tiny(tmp_path / "runs", on_disk, *settings)).faces.cache is None
