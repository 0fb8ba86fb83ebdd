"""Local copies of remote files, output paths that must not exist, listings."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError


def test_local_file__of_this_machine(tmp_path: Path) -> None:
    """A local file is not copied."""
    (tmp_path / "a.bin").write_bytes(b"content")
    for uri in (str(tmp_path / "a.bin"), (tmp_path / "a.bin").as_uri()):
        with filesystem.local_file(uri) as path:
            assert path == str(tmp_path / "a.bin")


def test_local_file__of_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote file is copied under its own name, and the copy deleted at the end."""
    (tmp_path / "a.bin").write_bytes(b"content" * 1000)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(filesystem, "resolve", lambda uri: (store, uri.rpartition("/")[2]))
    with filesystem.local_file("s3://bucket/a.bin") as path:
        assert Path(path).name == "a.bin"
        assert Path(path).parent != tmp_path
        assert Path(path).read_bytes() == b"content" * 1000
    assert not Path(path).exists()
    with pytest.raises(DataError, match="no such file"), filesystem.local_file("s3://bucket/b.bin"):
        pass


def test_require_absent(tmp_path: Path) -> None:
    """A path that does not exist passes; an existing file or folder is an error with a fix."""
    filesystem.require_absent(str(tmp_path / "a"))
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path):
        with pytest.raises(DataError, match=str(path)) as caught:
            filesystem.require_absent(str(path))
        assert "--force" in caught.value.fix


def test_list_names__recursive(tmp_path: Path) -> None:
    """Files below come as sorted relative paths; folders themselves do not."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "b/y", "b/c/x"):
        (tmp_path / name).write_text("")
    assert filesystem.list_names(str(tmp_path), recursive=True) == ["b/c/x", "b/y", "z"]
    assert filesystem.list_names(str(tmp_path)) == ["z"]
    assert filesystem.is_folder(str(tmp_path))
    assert not filesystem.is_folder(str(tmp_path / "z"))
