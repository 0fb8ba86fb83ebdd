"""Packing keeps every record, in another order, and always writes the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from pyarrow import fs

from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import image_size
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import read_manifest
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.errors import DataError
from tests.data.packing.sets import (
    SMALL_RUNS,
    content,
    images_by_label,
    names_below,
    packed,
    refusal,
    write_folder,
    write_plain,
)
from tests.training.faces import ROOT, face_jpegs, write_face_set


def test_pack__holds_every_image_with_its_label_in_another_order(tmp_path: Path, face_set_path: str) -> None:
    """The bytes of all images and their labels are kept; open_faces agrees with the manifest."""
    manifest = packed([face_set_path], tmp_path / "set", num_shards=3)
    before, after = open_faces(face_set_path), open_faces(str(tmp_path / "set"))
    assert images_by_label(tmp_path / "set") == images_by_label(face_set_path)
    assert (after.num_images, after.num_identities, after.color_order) == (120, 12, "rgb")
    labels = after.labels()
    assert labels.tolist() == after.read(np.arange(120)).label.tolist()
    assert labels.tolist() != before.labels().tolist()
    assert (manifest.images, manifest.identities, manifest.encoded) == (120, 12, 0)
    assert manifest == read_manifest(str(tmp_path / "set" / "manifest.json"))
    assert (tmp_path / "set" / "property").read_text() == "12,112,112"
    assert names_below(tmp_path / "set") == [
        *("identities.csv", "labels.npy", "manifest.json", "property"),
        *(f"train-0000{n}-of-00003.{end}" for n in range(3) for end in ("idx", "rec")),
    ]


def test_labels__are_read_without_reading_images(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 64 images are read to verify labels.npy; some shards suffice for all identities."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    some = open_faces(str(tmp_path / "set" / "train-00001-*.rec"))
    assert some.num_identities == 12
    read: list[int] = []
    real = type(some).read
    monkeypatch.setattr(type(some), "read", lambda self, index: read.append(len(index)) or real(self, index))
    labels = some.labels()
    assert read == [60]
    assert labels.tolist() == some.read(np.arange(60)).label.tolist()


def test_pack__bytes_depend_on_the_seed_and_not_on_memory(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One or several runs and blocks give the same files; another seed gives other files."""
    packed([face_set_path], tmp_path / "a", num_shards=2)
    packed([face_set_path], tmp_path / "other", num_shards=2, seed=1)
    monkeypatch.setattr(PackOptions, "task_bytes", SMALL_RUNS)
    packed([face_set_path], tmp_path / "b", num_shards=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a").keys() == content(tmp_path / "other").keys()
    assert content(tmp_path / "a") != content(tmp_path / "other")


def test_pack__shards_differ_by_one_image_at_most(tmp_path: Path, face_set_path: str) -> None:
    """Shards are as equal as their number allows."""
    manifest = packed([face_set_path], tmp_path / "set", num_shards=7)
    assert sorted({shard.images for shard in manifest.shards}) == [17, 18]


def test_pack__several_sources(tmp_path: Path) -> None:
    """Labels of each source follow those of the one before; identities.csv lists their names."""
    write_face_set(tmp_path / "one.rec", 3, 2)
    write_folder(tmp_path / "two", {"bob": 2, "ann": 1})
    jpegs = face_jpegs(4, seed=9)
    write_plain(tmp_path / "three.rec", [4.0, 0.0, -1.0, 4.0], jpegs)
    (tmp_path / "four.csv").write_text("two/bob/1.jpg\n")
    names = ["one.rec", "two", "three.rec", "four.csv"]
    manifest = packed([tmp_path / name for name in names], tmp_path / "set", num_shards=2)
    bob = [(tmp_path / "two" / "bob" / f"{n}.jpg").read_bytes() for n in range(2)]
    assert images_by_label(tmp_path / "set") == {
        -1: sorted([jpegs[2], bob[1]]),
        **images_by_label(tmp_path / "one.rec"),
        3: [(tmp_path / "two" / "ann" / "0.jpg").read_bytes()],
        4: sorted(bob),
        5: [jpegs[1]],
        6: sorted([jpegs[0], jpegs[3]]),
    }
    assert (manifest.identities, manifest.unlabeled) == (7, 2)
    assert [source["first_label"] for source in manifest.sources] == [0, 3, 5, 7]
    lines = (tmp_path / "set" / "identities.csv").read_text().splitlines()
    assert len(lines) == 8
    assert lines[5] == f'4,"{tmp_path / "two"}","bob",2'
    assert lines[7] == f'6,"{tmp_path / "three.rec"}","4",2'


def test_pack__of_a_packed_set(tmp_path: Path, face_set_path: str) -> None:
    """A packed set is a source like any other: labels and identities are kept."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    packed([tmp_path / "set"], tmp_path / "again", num_shards=1, seed=5)
    assert images_by_label(tmp_path / "again") == images_by_label(face_set_path)
    assert open_faces(str(tmp_path / "again")).num_identities == 12


def test_pack__aligned(tmp_path: Path) -> None:
    """A list with landmarks gives re-encoded faces of 112x112; five equal points are an error."""
    (tmp_path / "wide.jpg").write_bytes(face_jpegs(1, size=(300, 200))[0])
    points = ",".join(f"{x * 1.5:.2f},{y * 1.5 + 10:.2f}" for x, y in POSITIONS_PX)
    same = ",".join(["7"] * 10)
    (tmp_path / "list.csv").write_text(f"wide.jpg,1,{points}\nwide.jpg,1,{same}\n")
    manifest = packed([tmp_path / "list.csv"], tmp_path / "set")
    assert (manifest.encoded, manifest.left_out["images"]) == (1, 1)
    assert "expected five points (x, y) in pixels of the image" in manifest.left_out["first"][0]
    assert image_size(images_by_label(tmp_path / "set")[0][0]) == (112, 112)
    error = refusal([tmp_path / "list.csv"], tmp_path / "b", rules=ImageRules(size=96))
    assert (error.subject, error.found) == ("--size", "96 with landmarks")


def test_pack__of_another_size(tmp_path: Path, face_set_path: str) -> None:
    """A wrong image size is an error when the set is opened, not for each record."""
    packed([face_set_path], tmp_path / "set", rules=ImageRules(size=96, resize=True))
    assert open_faces(str(tmp_path / "set")).num_images == 120
    with pytest.raises(DataError, match="images of 96x96, according to the manifest"):
        open_faces(str(tmp_path / "set"), "rgb", 112)


def test_pack__duplicate_source(tmp_path: Path) -> None:
    """A source may not be given twice, not even by another path."""
    write_folder(tmp_path / "images", {"a": 2})
    again = tmp_path / "images" / ".." / "images"
    error = refusal([tmp_path / "images", again], tmp_path / "set")
    assert error.found == "the same source twice"
    assert not (tmp_path / "set").exists()


def test_pack__into_its_source(tmp_path: Path) -> None:
    """A set is not packed into its own source."""
    write_folder(tmp_path / "images", {"a": 2})
    error = refusal([tmp_path / "images"], tmp_path / "images" / "set")
    assert "a path inside the source" in error.found
    assert names_below(tmp_path / "images") == ["a"]


@pytest.mark.parametrize(
    ("options", "subject", "expected"),
    [
        ({"num_shards": 0}, "--shards", "1 to 99999"),
        ({"num_shards": 121}, "--shards", "at least one image per shard"),
        ({"seed": -1}, "--seed", "0 to"),
        ({"rules": ImageRules(quality=0)}, "--quality", "1 to 100"),
        ({"memory_bytes": 1 << 20}, "--memory", "at least 33554432"),
    ],
)
def test_pack__impossible_option(
    tmp_path: Path, face_set_path: str, options: dict[str, Any], subject: str, expected: str
) -> None:
    """The option is reported before anything is written."""
    error = refusal([face_set_path], tmp_path / "set", **options)
    assert error.subject == subject
    assert expected in error.expected
    assert not (tmp_path / "set").exists()


def test_pack__in_an_object_store(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By URI, with a space in a name, the images equal those on disk; no lock is left."""
    shutil.copytree(Path(face_set_path).parent, tmp_path / "faces")
    write_folder(tmp_path / "more images", {"a b": 2})
    # A folder of the disk, behind another class than LocalFileSystem.
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(reading, "resolve_uri", lambda uri: (store, unquote(uri.removeprefix("store://"))))
    # Object stores have no folders; here they must exist.
    (tmp_path / "set" / "scratch").mkdir(parents=True)
    out = PackOptions(("store://faces/train.rec", "store://more%20images"), "store://set", num_shards=2)
    pack_faces(out)
    assert "pack.lock" not in names_below(tmp_path / "set")
    assert "scratch" not in names_below(tmp_path / "set")
    packed([tmp_path / "faces" / "train.rec", tmp_path / "more images"], tmp_path / "b", num_shards=2)
    assert images_by_label("store://set") == images_by_label(tmp_path / "b")
    assert len(images_by_label("store://set")) == 13


PRINTS_PEAK_MEMORY = """
import re, sys
from pathlib import Path
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.errors import DataError
for source in sys.argv[1:]:
    pack_faces(PackOptions((source,), source + ".set", num_shards=2, memory_bytes=32 << 20))
    print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


# Not getrusage: there, the peak of a child starts at that of its parent, here pytest.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pack__memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Packing 100 MB with a limit of 32 MiB takes at most that more than packing ten images."""
    noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    image = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    count = 100_000_000 // len(image)
    write_plain(tmp_path / "small.rec", [0.0] * 10, [image] * 10)
    write_plain(tmp_path / "large.rec", [float(n % 50) for n in range(count)], [image] * count)
    command = [sys.executable, "-c", PRINTS_PEAK_MEMORY]
    sources = [str(tmp_path / "small.rec"), str(tmp_path / "large.rec")]
    done = subprocess.run([*command, *sources], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert (large - small) * 1024 < 32 << 20
    assert filesystem.file_size(str(tmp_path / "large.rec.set" / "labels.npy")) > 4 * count
