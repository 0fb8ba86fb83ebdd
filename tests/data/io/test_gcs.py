"""Google Cloud Storage: pyarrow's client against a server on loopback, with injected faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem, gcs, reading, s3
from lafs_ray.errors import DataError
from tests.data.record_sets import write_plain
from tests.data.remote import put, rows_of
from tests.data.shards import samples, write_parquet, write_tar
from tests.gcs_server import GcsStore, gcs_store


@pytest.fixture(scope="module")
def server() -> Iterator[GcsStore]:
    with gcs_store() as running:
        yield running


@pytest.fixture
def store(server: GcsStore) -> GcsStore:
    server.reset("faces")
    return server


def copy(store: GcsStore, folder: Path, key: str) -> str:
    """Upload the files of a folder."""
    for file in sorted(folder.iterdir()):
        put(store.uri(f"faces/{key}/{file.name}"), file.read_bytes())
    return store.uri(f"faces/{key}")


@pytest.mark.parametrize("kind", ["rec", "tar", "parquet"])
def test_sets__are_those_of_the_disk(store: GcsStore, tmp_path: Path, kind: str) -> None:
    """Folder, pattern and file of each kind: fingerprint, labels and bytes; a 503 and a cut answer are repeated."""
    images = [b"%d" % n * 200 for n in range(5)]
    for name in "ab":
        if kind == "rec":
            write_plain(tmp_path / f"{name}.rec", 5, 500)
        elif kind == "tar":
            write_tar(tmp_path / f"{name}.tar", samples(images, range(5)))
        else:
            write_parquet(tmp_path / f"{name}.parquet", 2, image=images, label=list(range(5)))
    local, uri = open_faces(str(tmp_path)), copy(store, tmp_path, "set")
    if kind == "tar":  # The client waits for a second.
        store.fail(503, 1, ending="a.tar")
    for path in (uri, filesystem.join(uri, f"*.{kind}")):
        faces = open_faces(path)
        assert faces.fingerprint == local.fingerprint
    store.fail(0, 1, ending=f"b.{kind}")
    numbers = np.random.default_rng(0).permutation(10)
    assert rows_of(faces, numbers) == rows_of(local, numbers)
    assert np.array_equal(faces.labels(), local.labels())
    assert rows_of(open_faces(filesystem.join(uri, f"a.{kind}")), range(5)) == rows_of(local, range(5))


def test_read__an_object_that_changed(store: GcsStore, tmp_path: Path) -> None:
    """Another object of the same size and name stops the read by its ETag."""
    write_plain(tmp_path / "a.rec", 3)
    faces = open_faces(copy(store, tmp_path, "set"))
    content = (tmp_path / "a.rec").read_bytes()
    put(store.uri("faces/set/a.rec"), content[:-1] + b"\1")
    with pytest.raises(DataError, match="found: +version"):
        faces.read(np.arange(3))


def test_files__written_listed_and_deleted(store: GcsStore) -> None:
    """A run's folder: small and large files, listings over several pages, deletions; a failed write leaves no file."""
    store.fail(503, 1, method="POST", ending="/o")
    content = bytes(range(256)) * 40_000
    put(store.uri("faces/runs/x/step-1.pt"), content)
    for number in range(5):
        put(store.uri(f"faces/runs/x/logs/{number}.jsonl"), b"1")
    folder = store.uri("faces/runs/x")
    assert filesystem.read_bytes(store.uri("faces/runs/x/step-1.pt")) == content
    assert filesystem.is_folder(folder)
    assert filesystem.list_names(folder) == ["step-1.pt"]
    assert len(filesystem.list_names(folder, recursive=True)) == 6
    with pytest.raises(RuntimeError, match="killed"):
        put(store.uri("faces/runs/x/step-2.pt"), content, killed=True)
    assert not filesystem.exists(store.uri("faces/runs/x/step-2.pt"))
    filesystem.delete(store.uri("faces/runs/x/step-1.pt"))
    filesystem.delete(store.uri("faces/runs/x/step-1.pt"))
    assert filesystem.list_names(folder) == []
    filesystem.delete_tree(folder)
    assert filesystem.list_names(store.uri("faces"), recursive=True) == []


def test_errors__name_the_cause(store: GcsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bucket or object, no permission, wrong options: found, and what to do."""
    put(store.uri("faces/x.txt"), b"1")
    with pytest.raises(DataError, match="no such file"):
        filesystem.read_bytes(store.uri("faces/y.txt"))
    with pytest.raises(DataError, match="no such file or folder"):
        open_faces(store.uri("nowhere/set"))
    with pytest.raises(DataError, match="no such bucket"):
        put(store.uri("nowhere/x.txt"), b"1")
    store.fail(403, 1, ending="x.txt")
    with pytest.raises(DataError, match="no permission to read it"):
        filesystem.read_bytes(store.uri("faces/x.txt"))
    store.fail(403, 1, method="POST", ending="/o")
    with pytest.raises(DataError, match="no permission to write"):
        put(store.uri("faces/z.txt"), b"1")
    with pytest.raises(DataError, match="region=eu in the URI; known are anonymous"):
        filesystem.exists("gs://faces/x?region=eu")
    with pytest.raises(DataError, match="no bucket"):
        filesystem.exists("gs:///x")


def test_errors__a_store_that_does_not_answer_is_no_empty_folder(
    store: GcsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 to the end of the retries: an error in bounded time, for a file and a folder."""
    put(store.uri("faces/set/x.txt"), b"1")
    monkeypatch.setattr(gcs, "RETRY_S", 0.1)
    s3.resolve_uri.cache_clear()
    store.fail(503, 100, ending="/o")
    store.fail(503, 100, ending="x.txt")
    with pytest.raises(DataError, match="UNAVAILABLE: Retry policy exhausted") as raised:
        reading.open_input(store.uri("faces/set/x.txt")).size()
    assert "error_info" not in raised.value.found
    with pytest.raises(DataError, match="UNAVAILABLE"):
        filesystem.exists(store.uri("faces/set"))
    s3.resolve_uri.cache_clear()
