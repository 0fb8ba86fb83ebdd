"""S3: pyarrow's client against a server on loopback, with injected faults."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem, reading, s3
from lafs_ray.data.sampler import EpochSampler, rank_batches
from lafs_ray.errors import DataError
from tests.data.remote import put, rows_of
from tests.object_store import Fault, ObjectStore


def test_open_faces__same_set_as_on_disk(store: ObjectStore, on_s3: str, on_disk: Path) -> None:
    """Folder, pattern and file give the set of the disk: fingerprint, labels and bytes."""
    local = open_faces(str(on_disk))
    everything = range(local.num_images)
    for name in ("", "/*.rec", "/[ab].rec"):
        remote = open_faces(filesystem.join(on_s3, *filter(None, [name.strip("/")])))
        assert remote.fingerprint == local.fingerprint
        assert rows_of(remote, everything) == rows_of(local, everything)
        assert np.array_equal(remote.labels(), local.labels())
    one = open_faces(filesystem.join(on_s3, "a.rec"))
    assert rows_of(one, range(60)) == rows_of(local, range(60))


def test_open_faces__shards_at_the_same_time(store: ObjectStore, on_s3: str) -> None:
    """The second shard's index is requested while the first shard is being opened."""
    store.latency_s = 0.01
    open_faces(on_s3)
    paths = [one.path for one in store.requests]
    last_of_first = len(paths) - 1 - paths[::-1].index("/faces/set/a.rec")
    assert paths.index("/faces/set/b.idx") < last_of_first, paths


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_streams__byte_equal_from_disk_and_store(store: ObjectStore, on_s3: str, on_disk: Path, readers: int) -> None:
    """Batches of 1, 2 and 4 concurrent ranks are those of the disk."""
    local, remote = open_faces(str(on_disk)), open_faces(on_s3)
    plan = EpochSampler(local.num_images, 16, seed=3, chunk_records=4)

    def stream(faces: FaceSet, rank: int) -> list[list[bytes]]:
        batches = rank_batches(plan, 0, 9, rank, readers)
        return [faces.read(records).images for _, records in batches]

    with ThreadPoolExecutor(readers) as pool:
        found = list(pool.map(lambda rank: stream(remote, rank), range(readers)))
    assert found == [stream(local, rank) for rank in range(readers)]


def test_requests__as_few_and_as_large_as_planned(store: ObjectStore, on_s3: str) -> None:
    """Coalesced ranges are one request each; a file is opened and checked once."""
    faces = open_faces(on_s3)
    store.reset()
    rows_of(faces, range(120))
    ranges = {(one.path, one.byte_range) for one in store.log()}
    expected = set()
    for shard, name in enumerate("ab"):
        first, stop = faces.shard_starts[shard : shard + 2]
        begins, sizes = faces.offsets[first:stop], faces.sizes[first:stop]
        ends = begins + sizes
        expected |= {
            (f"/faces/set/{name}.rec", (int(begins[group[0]]), int(ends[group[-1]])))
            for group in reading._coalesce(reading.ByteRanges(name, begins, sizes))
        }
    assert len(store.log()) == len(expected) == 2
    assert ranges == expected
    assert len(store.log("HEAD")) == 4


def test_requests__overlap_over_files(store: ObjectStore, on_s3: str) -> None:
    """Distant records of two files are requested concurrently."""
    faces = open_faces(on_s3)
    store.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_MAX_GAP_BYTES", 0)
        store.latency_s = 0.3
        begin = time.monotonic()
        rows_of(faces, np.arange(0, 120, 10))
        seconds = time.monotonic() - begin
    assert len(store.log()) == 12
    one_by_one = 0.3 * (12 + 4)
    assert seconds < one_by_one / 2, f"{seconds:.1f} s"


@pytest.mark.parametrize("kind", ["slow down", "error", "reset", "cut", "stall"])
def test_faults__that_pass_change_nothing(store: ObjectStore, on_s3: str, on_disk: Path, kind: str) -> None:
    """After one fault of each kind the bytes are right, and the request was repeated."""
    local, remote = open_faces(str(on_disk)), open_faces(on_s3)
    store.reset()
    store.faults.append(Fault(kind, times=1))
    assert rows_of(remote, range(60)) == rows_of(local, range(60))
    assert len(store.log()) == 2


@pytest.mark.parametrize("kind", ["slow down", "reset", "stall"])
def test_faults__that_stay_end_in_a_message(
    store: ObjectStore, on_s3: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that never answers stops the read with URI, bytes and seconds, in bounded time."""
    monkeypatch.setattr(s3, "MAX_ATTEMPTS", 3)
    s3._client.cache_clear()
    s3.resolve_uri.cache_clear()
    faces = open_faces(on_s3)
    store.reset()
    store.faults.append(Fault(kind, times=1000))
    begin = time.monotonic()
    with pytest.raises(DataError) as error:
        faces.read(np.arange(3))
    seconds = time.monotonic() - begin
    assert seconds < 30
    first, stop = faces.offsets[0], faces.offsets[2] + faces.sizes[2]
    uri = filesystem.join(on_s3, "a.rec")
    assert error.value.subject == f"{uri}, bytes {first} to {stop}"
    assert "AWS Error" in error.value.found
    # The client's waits are random: both may be too short to be reported.
    assert "gave up after" in error.value.found or seconds < 1.2
    assert len(store.log()) == 3


def test_waits__grow_and_differ(store: ObjectStore, on_s3: str) -> None:
    """The waits between attempts are random: two refused reads do not retry in step."""
    faces = open_faces(on_s3)
    waits = []
    for _ in range(2):
        store.reset()
        store.faults.append(Fault("slow down", times=3))
        rows_of(faces, range(3))
        times = [one.at for one in store.log()]
        assert len(times) == 4
        waits.append(np.diff(times))
    assert abs(waits[0] - waits[1]).max() > 0.01


def test_atomic_write__old_object_until_the_new_one_is_whole(store: ObjectStore) -> None:
    """An exception in the block, and a failed upload, leave the old object."""
    uri = store.uri("faces/runs/state.bin")
    put(uri, b"old")
    with pytest.raises(RuntimeError, match="killed"):
        put(uri, b"half", killed=True)
    assert filesystem.read_bytes(uri) == b"old"
    for method in ("PUT", "POST"):
        store.reset()
        store.faults.append(Fault("error", times=1000, method=method, ending="state.bin"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3, "MAX_ATTEMPTS", 2)
            s3._client.cache_clear()
            s3.resolve_uri.cache_clear()
            with pytest.raises(DataError, match=r"state\.bin"):
                put(uri, b"new" * 1000)
        store.reset()
        assert filesystem.read_bytes(uri) == b"old"
    store.faults.append(Fault("slow down", times=1, method="PUT", ending="state.bin"))
    put(uri, b"new" * 1000)
    assert filesystem.read_bytes(uri) == b"new" * 1000


def test_folders__list_delete_and_exist(store: ObjectStore) -> None:
    """Names, existence and deletion work as on a disk, with the query kept."""
    folder = store.uri("faces/listed")
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        put(filesystem.join(folder, name), b"x")
    assert filesystem.list_names(folder) == ["a.txt", "b.txt"]
    filesystem.delete(filesystem.join(folder, "a.txt"))
    assert filesystem.list_names(folder) == ["b.txt"]
    assert filesystem.exists(filesystem.join(folder, "deep"))
    assert not filesystem.exists(filesystem.join(folder, "a.txt"))
    with pytest.raises(DataError, match="no such file"):
        filesystem.read_bytes(filesystem.join(folder, "a.txt"))


@pytest.mark.parametrize("change", ["shorter", "same size", "gone"])
def test_read__object_changed_since_the_set_was_opened(store: ObjectStore, on_disk: Path, change: str) -> None:
    """An object that is replaced or deleted during a run is an error that names it."""
    uri = store.uri(f"faces/changed/{change.replace(' ', '')}.rec")
    content = (on_disk / "a.rec").read_bytes()
    index = (on_disk / "a.idx").read_bytes()
    put(uri, content)
    put(uri.replace(".rec", ".idx"), index)
    faces = open_faces(uri)
    rows_of(faces, range(3))
    if change == "gone":
        filesystem.delete(uri)
    else:
        put(uri, content[: len(content) // 2] if change == "shorter" else content[:-1] + b"\1")
    with pytest.raises(DataError) as error:
        faces.read(np.arange(60))
    assert error.value.subject == uri
    assert ("no such file" in error.value.found) == (change == "gone")


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://key:secret@bucket/a.rec", "credentials in the URI"),
        ("s3://bucket/a.rec?regoin=x", "regoin=x in the URI; known are"),
        ("s3://bucket/a.rec?anonymous=maybe&region=x", "anonymous=maybe in the URI"),
        ("s3:///a.rec", "no bucket"),
    ],
)
def test_resolve__bad_uris(uri: str, found: str) -> None:
    """An unknown option is named with the known ones; a secret is refused and not printed."""
    with pytest.raises(DataError) as error:
        reading.resolve(uri)
    assert found in error.value.found
    assert "secret" not in str(error.value)


def test_clients__are_shared_by_the_objects_of_a_store(store: ObjectStore) -> None:
    """A thousand shards have one client, hence one pool of connections."""
    clients = {id(reading.resolve(store.uri(f"faces/{number}.rec"))[0]) for number in range(20)}
    assert len(clients) == 1


def test_run__checkpoints_and_metrics_in_the_store(
    store: ObjectStore, on_s3: str, on_disk: Path, tmp_path: Path
) -> None:
    """A run that reads from and writes to the store, killed and continued, equals the disk's."""
    from tests.training.faces import run, tiny, without_times

    local = run(tiny(tmp_path / "runs", on_disk, "log.every_steps=1"))
    runs = store.uri("faces/runs")
    settings = ["log.every_steps=1", "checkpoints.every=2 steps"]
    run(tiny(runs, on_s3, *settings), killed_at=3)
    remote = run(tiny(runs, on_s3, *settings))
    assert remote.exact == local.exact
    lines = filesystem.read_bytes(filesystem.join(remote.inputs.folder().uri, "metrics.jsonl"))
    assert [without_times(json.loads(line)) for line in lines.splitlines()] == local.exact
