"""Fixtures: a face set on a disk and on an S3 server on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lafs_ray.data.io import reading, s3
from tests.data.record_sets import INSIGHTFACE
from tests.data.remote import put
from tests.object_store import ObjectStore
from tests.object_store import object_store as serve
from tests.training.faces import write_face_set


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, serve() as running:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs, _ = reading.resolve(running.uri("faces", allow_bucket_creation="true"))
        fs.create_dir("faces")
        yield running


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server with an empty log and no faults, and a new client with short timeouts."""
    server.reset()
    monkeypatch.setattr(s3, "_SECONDS", {"connect_timeout": 1.0, "request_timeout": 1.0})
    s3._client.cache_clear()
    s3.resolve_uri.cache_clear()
    yield server  # type: ignore[misc]
    s3._client.cache_clear()
    s3.resolve_uri.cache_clear()


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 60 faces each."""
    folder = tmp_path_factory.mktemp("set")
    for name in "ab":
        write_face_set(folder / f"{name}.rec", num_identities=6)
    return folder


@pytest.fixture(scope="session")
def on_s3(server: ObjectStore, on_disk: Path) -> str:
    """The same two shards in the store."""
    for path in sorted(on_disk.iterdir()):
        put(server.uri(f"faces/set/{path.name}"), path.read_bytes())
    return server.uri("faces/set")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("train.rec", "train.idx"):
        shutil.copy(INSIGHTFACE / name, tmp_path)
        (tmp_path / name).chmod(0o644)
    return tmp_path / "train.rec"
