"""Atomic writes, local copies of remote files, output paths that must not exist, listings."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import DataError


def test_atomic_write__reader_sees_old_until_the_end(tmp_path: Path) -> None:
    """Readers see the old file during the write, the new one after it; parents are created."""
    path = tmp_path / "deep" / "a.bin"
    for content in (b"one", b"two"):
        with filesystem.atomic_write(path.as_uri()) as file:
            file.write(content)
            file.flush()
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["a.bin"]


def test_atomic_write__object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where closing a stream publishes it, a failed block still publishes nothing."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(reading, "resolve", lambda _: (store, "a.bin"))

    def killed_on_the_way() -> None:
        with filesystem.atomic_write("s3://bucket/a.bin") as file:
            file.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed_on_the_way()
    assert os.listdir(tmp_path) == []
    with filesystem.atomic_write("s3://bucket/a.bin") as file:
        file.write(b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


@pytest.mark.parametrize(("number", "found"), [(errno.ENOSPC, "disk full"), (errno.EACCES, "no permission to write")])
def test_atomic_write__os_errors_are_data_errors(
    number: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk and a missing permission are a DataError with the path; nothing is left."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    path = str(tmp_path / "a.bin")
    with pytest.raises(DataError) as error, filesystem.atomic_write(path) as file:
        file.write(b"x")
    assert (error.value.subject, error.value.found) == (path, found)
    assert os.listdir(tmp_path) == []


def test_atomic_write__target_is_a_folder(tmp_path: Path) -> None:
    """A folder in the file's place is an error about that path, and stays."""
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(DataError, match=r"a\.bin"), filesystem.atomic_write(str(tmp_path / "a.bin")) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["a.bin"]


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
    monkeypatch.setattr(reading, "resolve", lambda uri: (store, uri.rpartition("/")[2]))
    with filesystem.local_file("s3://bucket/a.bin") as path:
        assert Path(path).name == "a.bin"
        assert Path(path).parent != tmp_path
        assert Path(path).read_bytes() == b"content" * 1000
    assert not Path(path).exists()
    with pytest.raises(DataError, match="no such file"), filesystem.local_file("s3://bucket/b.bin"):
        pass


def test_require_output__existing(tmp_path: Path) -> None:
    """A new path passes; an existing file needs force, a folder never passes."""
    filesystem.require_output(str(tmp_path / "a"))
    (tmp_path / "a").write_text("")
    with pytest.raises(DataError, match="an existing file") as caught:
        filesystem.require_output(str(tmp_path / "a"))
    assert "--force" in caught.value.fix
    filesystem.require_output(str(tmp_path / "a"), force=True)
    with pytest.raises(DataError, match="found:    a folder"):
        filesystem.require_output(str(tmp_path), force=True)


def test_require_output__an_input(tmp_path: Path) -> None:
    """Neither an input nor data in an input folder is replaced, by whatever path it is named."""
    (tmp_path / "set").mkdir()
    for name in ("train.rec", "notes.parquet"):
        (tmp_path / "set" / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    rec = str(tmp_path / "link" / "train.rec")
    for inputs in ([str(tmp_path / "set" / "train.rec")], [str(tmp_path / "set")]):
        with pytest.raises(DataError, match="an input of this command"):
            filesystem.require_output(rec, force=True, inputs=inputs)
    filesystem.require_output(str(tmp_path / "set" / "notes.parquet"), force=True, inputs=[str(tmp_path / "set")])


@pytest.mark.parametrize(("column", "is_input"), [([{"bytes": b"a"}], True), ([b"a"], True), ([[0.5]], False)])
def test_require_output__parquet_in_a_folder(tmp_path: Path, column: list[Any], is_input: bool) -> None:
    """One with images is data of the folder; embeddings that were written there may be written again."""
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    refused = pytest.raises(DataError, match="an input") if is_input else contextlib.nullcontext()
    with refused:
        filesystem.require_output(str(tmp_path / "a.parquet"), force=True, inputs=[str(tmp_path)])


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ("set/0.tar", "set/0.tar"),
        ("set", "set/0.tar"),
        ("set/train.rec", "set/train.idx"),
        ("set/train.rec", "set/hard.rec"),
        ("set/*.rec", "set/train.rec"),
        ("set/*.rec", "set/train.idx"),
        ("set", "set/a/face.JPG"),
        ("run", "run/config.json"),
        ("run", "run/checkpoints/step-00000001.pt"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_require_output__what_an_input_stands_for(tmp_path: Path, given: str, out: str, prefix: str) -> None:
    """The index of a .rec, other names of it, matches of a pattern, images and a run's files are inputs as well."""
    for name in (
        "set/train.rec",
        "set/train.idx",
        "set/0.tar",
        "set/a/face.JPG",
        "run/config.json",
        "run/eval/results.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-00000001.pt").write_text("")
    os.link(tmp_path / "set" / "train.rec", tmp_path / "set" / "hard.rec")
    inputs = [prefix + str(tmp_path / given)]
    with pytest.raises(DataError, match="an input of this command"):
        filesystem.require_output(str(tmp_path / out), force=True, inputs=inputs)
    filesystem.require_output(str(tmp_path / "run" / "eval" / "results.json"), force=True, inputs=inputs)


@pytest.mark.parametrize("kind", ["a pipe", "a link", "a folder", "a device"])
def test_atomic_write__onto_what_is_no_regular_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices, pipes, links and folders are refused and stay what they are."""
    path = tmp_path / "out"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        (tmp_path / "target").write_text("kept")
        path.symlink_to(tmp_path / "target")
    elif kind == "a folder":
        path.mkdir()
    else:
        # The mode of a character device, on a file: no test touches a real one.
        path.write_text("")
        device = os.stat_result((stat.S_IFCHR | 0o666, *path.lstat()[1:]))
        monkeypatch.setattr(filesystem.os, "lstat", lambda _: device)
    with pytest.raises(DataError, match=f"found:    {kind}"), filesystem.atomic_write(str(path)) as file:
        file.write(b"new")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "target") == ["out"]
    assert kind != "a link" or (path.is_symlink() and (tmp_path / "target").read_text() == "kept")


@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.EFBIG])
def test_atomic_write__errors_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    """An error at any step is a DataError about the file; the old content stays, and nothing half-written."""
    path = tmp_path / "out"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filesystem.os, operation, fail)
    with pytest.raises(DataError) as caught, filesystem.atomic_write(str(path)) as file:
        file.write(b"new" * 100_000)
    monkeypatch.undo()
    assert caught.value.subject == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_atomic_write__an_error_of_the_caller_is_not_of_the_file(tmp_path: Path) -> None:
    """An OSError that something else in the block raises stays what it is, also of a full disk."""
    with pytest.raises(OSError, match="elsewhere"), filesystem.atomic_write(str(tmp_path / "out")):
        raise OSError(errno.ENOSPC, "elsewhere")
    assert os.listdir(tmp_path) == []


def test_atomic_write__deletes_what_killed_processes_left(tmp_path: Path) -> None:
    """A partial file of the same name goes if its writer is dead, and stays while it writes."""
    code = "import sys, os; from lafs_ray.data.io import filesystem as f\n"
    code += "with f.atomic_write(sys.argv[1]) as file: print(flush=True); sys.stdin.read(); os._exit(9)"
    out = tmp_path / "out"
    (tmp_path / ".other.0123456789ab.partial").write_text("of another file")
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(2):
            with filesystem.atomic_write(str(out)) as file:
                file.write(b"new")
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
        writer.stdin.close()
    with filesystem.atomic_write(str(out)) as file:
        file.write(b"newest")
    assert sorted(os.listdir(tmp_path)) == [".other.0123456789ab.partial", "out"]


def test_list_names__recursive(tmp_path: Path) -> None:
    """Files below come as sorted relative paths; folders themselves do not."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "b/y", "b/c/x"):
        (tmp_path / name).write_text("")
    assert filesystem.list_names(str(tmp_path), recursive=True) == ["b/c/x", "b/y", "z"]
    assert filesystem.list_names(str(tmp_path)) == ["z"]
    assert filesystem.is_folder(str(tmp_path))
    assert not filesystem.is_folder(str(tmp_path / "z"))
