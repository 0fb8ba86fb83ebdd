"""Folders of users: what other programs leave, links, and names in other encodings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.io.walk import PassedOver, find_images, walk
from lafs_ray.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in find_images(str(folder))[0]]


def test_find_images__every_ending_and_no_other(tmp_path: Path) -> None:
    """JPEG, PNG, BMP and WebP in any case; other files are counted by ending."""
    images = ["a/1.jpg", "a/2.JPEG", "a/3.jfif", "a/4.Png", "b/5.bmp", "b/6.WEBP"]
    touch(tmp_path, *images, "a/notes.txt", "b/more.txt", "README", "b/x.heic")
    assert names_in(tmp_path) == images
    counts = find_images(str(tmp_path))[1].counts
    assert counts == {"ending .txt": 2, "no ending": 1, "ending .heic": 1}


def test_find_images__what_other_programs_leave(tmp_path: Path) -> None:
    """Hidden names and folders of macOS, disks and Windows are passed over, once each, with an example."""
    touch(tmp_path, "a/1.jpg", ".ipynb_checkpoints/1.jpg", ".ipynb_checkpoints/2.jpg", "a/._1.jpg", "a/.DS_Store")
    touch(tmp_path, "__MACOSX/a/1.jpg", "a/@eaDir/1.jpg/SYNO.jpg", "$RECYCLE.BIN/1.jpg", "#recycle/1.jpg")
    assert names_in(tmp_path) == ["a/1.jpg"]
    first, second = find_images(str(tmp_path))[1].lines()
    assert first.startswith("passed over, of other programs: 4 (")
    assert second.startswith("passed over, hidden (a leading dot): 3 (")
    assert ".ipynb_checkpoints" in second


def test_find_images__in_a_hidden_folder_that_is_given(tmp_path: Path) -> None:
    """The folder that the user names may have any name."""
    touch(tmp_path, ".cache/@eaDir/a/1.jpg")
    assert names_in(tmp_path / ".cache" / "@eaDir") == ["a/1.jpg"]


def test_walk__links_in_a_circle(tmp_path: Path) -> None:
    """A link to a folder around, beside or below itself is no second way in; one to elsewhere is, once."""
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    touch(photos, "b/1.jpg", "c/d/2.jpg")
    touch(elsewhere, "3.jpg")
    for name, target in (("a", photos / "b"), ("c/up", photos), ("c/d/top", tmp_path), ("b/self", photos / "b")):
        (photos / name).symlink_to(target)
    for name in ("e", "f"):
        (photos / name).symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)
    assert names_in(photos) == ["b/1.jpg", "c/d/2.jpg", "e/3.jpg"]
    assert find_images(str(photos))[1].counts == {"a folder entered already": 6}


def test_walk__dead_links_and_devices(tmp_path: Path) -> None:
    """An image that is a dead link is listed as such; a pipe is counted, and never opened."""
    (tmp_path / "1.jpg").symlink_to("/not/mounted/1.jpg")
    (tmp_path / "person").symlink_to("/not/mounted/person")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "2.jpg")
    images, passed_over = find_images(str(tmp_path))
    assert [(image.name, image.kind) for image in images] == [("1.jpg", "dead link"), ("loop.jpg", "dead link")]
    assert passed_over.counts == {"a link that leads nowhere": 1, "a device, pipe or socket": 1}


def test_walk__of_a_few_levels(tmp_path: Path) -> None:
    """A depth of 1 is the folder alone; deeper folders are not entered."""
    touch(tmp_path, "1", "a/2", "a/b/3")
    for depth, names in ((1, ["1"]), (2, ["1", "a/2"]), (None, ["1", "a/2", "a/b/3"])):
        assert sorted(entry.name for entry in walk(str(tmp_path), PassedOver(), depth=depth)) == names


def test_names__that_are_not_utf_8(tmp_path: Path) -> None:
    """A file or folder in Latin-1 is named with its bytes, in a listing and as a path; other files do no harm."""
    folder = os.fsencode(tmp_path) + b"/Jos\xe9"
    os.makedirs(folder)
    assert names_in(tmp_path) == []
    Path(os.fsdecode(folder + b"/1.jpg")).write_bytes(b"x")
    with pytest.raises(DataError) as raised:
        find_images(str(tmp_path))
    assert (raised.value.subject, raised.value.found) == (rf"{tmp_path}: Jos\xe9/1.jpg", "a name that is not UTF-8")
    with pytest.raises(DataError, match=r"Jos\\xe9\n.*not UTF-8"):
        reading.resolve(os.fsdecode(folder))
    touch(tmp_path, "b.txt")
    assert filesystem.list_names(str(tmp_path)) == ["b.txt"]
