"""Folders of `.rec` files with what archives, network disks and unmounted disks leave in them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.packing.source_factory import open_source
from tests.data.packing.sets import write_folder
from tests.data.record_sets import refusal, write_plain
from tests.data.shards import samples, write_parquet, write_tar


def test_open_faces__hidden_records_are_no_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """._train.rec of macOS is passed over aloud, in a folder and by a pattern; other hidden files quietly."""
    write_plain(tmp_path / "set" / "train.rec", 3)
    for name in ("._train.rec", "._train.idx", ".DS_Store"):
        (tmp_path / "set" / name).write_bytes(b"\x00\x05\x16\x07")
    for path in (tmp_path / "set", tmp_path / "set" / "*.rec", tmp_path / "*" / "*.rec"):
        with caplog.at_level(logging.WARNING):
            assert open_faces(str(path)).num_images == 3
        assert "._train.rec" in caplog.text
        assert "DS_Store" not in caplog.text
        caplog.clear()


@pytest.mark.parametrize("ending", [".rec", ".idx"])
def test_open_faces__dead_link_is_refused(tmp_path: Path, ending: str) -> None:
    """A shard or an index whose disk is not mounted is not a smaller set, nor a file without an index."""
    for name in "ab":
        write_plain(tmp_path / "set" / f"{name}.rec", 2)
    path = tmp_path / "set" / f"b{ending}"
    path.unlink()
    path.symlink_to("/not/mounted/b")
    for opened in (tmp_path / "set", tmp_path / "set" / "*.rec", tmp_path / "*" / "b.rec", tmp_path / "set" / "b.rec"):
        error = refusal(opened)
        assert (error.subject, error.found) == (str(path), "a link that leads nowhere (/not/mounted/b)")


def test_open_faces__dead_manifest_is_refused(tmp_path: Path) -> None:
    """A packed set without its manifest would be a plain one without labels."""
    write_plain(tmp_path / "a.rec", 2)
    (tmp_path / "manifest.json").symlink_to("/not/mounted/manifest.json")
    assert "a link that leads nowhere" in refusal(tmp_path).found


def test_open_faces__name_that_is_not_utf_8(tmp_path: Path) -> None:
    """A .rec whose name no URI could hold is named."""
    write_plain(tmp_path / "a.rec", 2)
    os.rename(tmp_path / "a.rec", os.fsencode(tmp_path) + b"/Jos\xe9.rec")
    os.rename(tmp_path / "a.idx", os.fsencode(tmp_path) + b"/Jos\xe9.idx")
    error = refusal(tmp_path)
    assert (error.subject, error.found) == (rf"{tmp_path}: Jos\xe9.rec", "a name that is not UTF-8")


def test_open_source__photos_with_a_hidden_record(tmp_path: Path) -> None:
    """A hidden .rec does not make a set of a folder of photos; a dead link among them is a bad record."""
    write_folder(tmp_path, {"a": 2})
    (tmp_path / "._train.rec").write_bytes(b"")
    (tmp_path / "a" / "2.jpg").symlink_to("/not/mounted/2.jpg")
    errors = [row.error for row in open_source(str(tmp_path)).read(0, 3)]
    assert errors == ["", "", "found no such file; expected an image"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.rec", "b.rec", "c.tar"], "2 .rec (a.rec), 1 .tar (c.tar)"),
        (["a.tar", "other.parquet"], "1 .tar (a.tar), 1 .parquet (other.parquet)"),
        (["a.tar", "b.tar.gz"], "1 .tar (a.tar), 1 compressed tar (b.tar.gz)"),
        (["a.tgz", "b.tar.zst"], "2 compressed tars (a.tgz)"),
    ],
)
def test_open_faces__several_kinds_in_a_folder(tmp_path: Path, names: list[str], found: str) -> None:
    """Nothing is left out in silence: the counts of each kind; a pattern chooses."""
    for name in names:
        (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / "*"):
        assert refusal(path).found == found


def test_open_faces__tables_beside_shards(tmp_path: Path) -> None:
    """A .parquet beside a .rec, or beside the .tar of its name, is a table, and an index beside a .tar is no .idx."""
    write_plain(tmp_path / "rec" / "a.rec", 3)
    write_parquet(tmp_path / "rec" / "landmarks.parquet", key=[1])
    assert open_faces(str(tmp_path / "rec")).num_images == 3
    write_tar(tmp_path / "tar" / "0.tar", samples([b"1", b"2"]))
    write_parquet(tmp_path / "tar" / "0.parquet", url=["x"])
    (tmp_path / "tar" / "0.idx").write_text("v1.2 1\n")
    assert open_faces(str(tmp_path / "tar")).num_images == 2


def test_open_faces__patterns_in_braces(tmp_path: Path) -> None:
    """WebDataset's notation, with leading zeros; a file that is missing is named, and a folder of such a name opens."""
    for number in (8, 9, 10):
        write_tar(tmp_path / f"a-{number:03}.tar", samples([b"%d" % number]))
    assert open_faces(f"{tmp_path}/a-{{008..010}}.tar").num_images == 3
    assert open_faces(f"{tmp_path}/a-{{008,010}}.tar").num_images == 2
    assert refusal(f"{tmp_path}/a-{{009..012}}.tar").subject == f"{tmp_path}/a-011.tar"
    assert refusal(f"{tmp_path}/{{0..9999999}}.tar").found == "{0..9999999}"
    assert refusal(f"{tmp_path}/{{9..0}}.tar").found == "braces for 0 files"
    write_tar(tmp_path / "{a,b}" / "0.tar", samples([b"1"]))
    assert open_faces(str(tmp_path / "{a,b}")).num_images == 1


def test_open_faces__a_compressed_tar(tmp_path: Path) -> None:
    """By its name, or by its content under another name; the remedy is to unpack it."""
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
    for name, found in (("a.tar.gz", "a compressed tar"), ("b.tar", "a compressed file")):
        error = refusal(tmp_path / name)
        assert error.found == found
        assert "gunzip" in error.fix
