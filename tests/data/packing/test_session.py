from __future__ import annotations

import errno
import os
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

from lafs_ray.data import storage
from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.data.faces import open_faces
from lafs_ray.data.manifest import read_manifest
from lafs_ray.data.packing import session
from lafs_ray.data.packing.images import ImageRules, image_size
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.errors import DataError
from tests.data.packing.sets import (
    content,
    images_by_label,
    names_below,
    packed,
    write_folder,
    write_plain,
)
from tests.training.faces import NO_IMAGE, ROOT, break_frame, face_jpegs, write_face_set

SMALL_RUNS = 60_000


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for some 20 of the 120 faces, so that there are many runs, and many blocks a shard."""
    monkeypatch.setattr(PackOptions, "task_bytes", SMALL_RUNS)


def refusal(*arguments: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as raised:
        packed(*arguments, **options)
    return raised.value


def test_pack__holds_every_image_with_its_label_in_another_order(
    tmp_path: Path, face_set_path: str
) -> None:
    """The bytes of all images and their labels are kept; what open_faces says of the set is so."""
    manifest = packed([face_set_path], tmp_path / "set", num_shards=3)
    before, after = open_faces(face_set_path), open_faces(str(tmp_path / "set"))
    assert images_by_label(tmp_path / "set") == images_by_label(face_set_path)
    assert (after.num_images, after.num_identities, after.colour_order) == (120, 12, "rgb")
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


def test_labels__are_answered_without_reading_images(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images are looked up to believe labels.npy; a subset of shards knows all identities."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    some = open_faces(str(tmp_path / "set" / "train-00001-*.rec"))
    assert some.num_identities == 12
    read: list[int] = []
    real = type(some).read
    monkeypatch.setattr(
        type(some),
        "read",
        lambda self, index: read.append(len(index)) or real(self, index),
    )
    labels = some.labels()
    assert read == [60]
    assert labels.tolist() == some.read(np.arange(60)).label.tolist()


def test_pack__bytes_depend_on_the_seed_and_not_on_memory(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run or several, one block or several: the same files. Another seed: other files."""
    packed([face_set_path], tmp_path / "a", num_shards=2)
    packed([face_set_path], tmp_path / "other", num_shards=2, seed=1)
    monkeypatch.setattr(PackOptions, "task_bytes", SMALL_RUNS)
    packed([face_set_path], tmp_path / "b", num_shards=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a").keys() == content(tmp_path / "other").keys()
    assert content(tmp_path / "a") != content(tmp_path / "other")


def test_pack__several_sources(tmp_path: Path) -> None:
    """Labels of each source follow those of the one before; identities.csv says who is who."""
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
        9: sorted([jpegs[0], jpegs[3]]),
    }
    assert (manifest.identities, manifest.unlabelled) == (10, 2)
    assert [source["first_label"] for source in manifest.sources] == [0, 3, 5, 10]
    lines = (tmp_path / "set" / "identities.csv").read_text().splitlines()
    assert len(lines) == 11
    assert lines[5] == f'4,"{tmp_path / "two"}","bob",2'
    assert lines[10] == f'9,"{tmp_path / "three.rec"}","4",2'


def test_pack__of_a_packed_set(tmp_path: Path, face_set_path: str) -> None:
    """A packed set is a source like any other: its labels and identities stay."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    packed([tmp_path / "set"], tmp_path / "again", num_shards=1, seed=5)
    assert images_by_label(tmp_path / "again") == images_by_label(face_set_path)
    assert open_faces(str(tmp_path / "again")).num_identities == 12


def test_pack__aligned(tmp_path: Path) -> None:
    """A list with landmarks gives faces of 112x112, encoded anew; one point five times is bad."""
    (tmp_path / "wide.jpg").write_bytes(face_jpegs(1, size=(300, 200))[0])
    points = ",".join(f"{x * 1.5:.2f},{y * 1.5 + 10:.2f}" for x, y in POSITIONS_PX)
    same = ",".join(["7"] * 10)
    (tmp_path / "list.csv").write_text(f"wide.jpg,1,{points}\nwide.jpg,1,{same}\n")
    manifest = packed([tmp_path / "list.csv"], tmp_path / "set")
    assert (manifest.encoded, manifest.left_out["images"]) == (1, 1)
    assert "five different points" in manifest.left_out["first"][0]
    assert image_size(images_by_label(tmp_path / "set")[0][0]) == (112, 112)
    error = refusal([tmp_path / "list.csv"], tmp_path / "b", rules=ImageRules(size=96))
    assert (error.subject, error.found) == ("--size", "96 with landmarks")


def damaged_set(folder: Path) -> Path:
    """120 faces: a broken frame (image 5), no image (7), another size (9)."""
    wrong_size = face_jpegs(1, size=(96, 96))[0]
    write_face_set(folder / "bad.rec", replaced={7: NO_IMAGE, 9: wrong_size})
    break_frame(folder / "bad.rec", 5)
    return folder / "bad.rec"


def test_bad_records__are_counted_named_and_left_out(tmp_path: Path) -> None:
    """The rest is packed; the manifest has each by name, in the order of the source."""
    manifest = packed([damaged_set(tmp_path)], tmp_path / "set", num_shards=2, max_bad=3)
    assert manifest.images == 117
    assert manifest.left_out["images"] == 3
    named = manifest.left_out["first"]
    for key, words, line in zip(
        [6, 8, 10], ["0x00000000", "do not decode", "96x96"], named, strict=True
    ):
        assert f"bad.rec, key {key}" in line
        assert words in line


def test_bad_records__more_than_allowed(tmp_path: Path, small_runs: None) -> None:
    """One too many stops, naming them; with --max-bad raised, what was done is taken up again."""
    source = damaged_set(tmp_path)
    error = refusal([source], tmp_path / "set", max_bad=2)
    assert error.subject == "bad records"
    assert error.found.startswith("3")
    assert error.found.count("bad.rec, key") == 3
    assert error.expected == "at most 2 (--max-bad)"
    assert packed([source], tmp_path / "set", max_bad=3).left_out["images"] == 3


class Killed(BaseException):
    """The end of the process; nothing may catch it, and nothing is cleared away."""


def test_pack__killed_at_any_file_and_started_again(
    tmp_path: Path, face_set_path: str, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of its files gets its name, the same command ends with the same set."""
    packed([face_set_path], tmp_path / "whole", num_shards=2)
    expected, number, left_over = content(tmp_path / "whole"), 0, 0
    for number in range(100):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            calls = iter(range(100))

            def killed(
                old: str, new: str, real: Any = os.replace, calls: Any = calls, last: int = number
            ) -> None:
                if next(calls) == last:
                    patched.setattr(os, "unlink", lambda _: None)
                    raise Killed
                real(old, new)

            patched.setattr(os, "replace", killed)
            try:
                packed([face_set_path], out, num_shards=2)
                break
            except Killed:
                left_over += any(name.endswith(".partial") for name in names_below(out))
        if number > 0:
            with pytest.raises(DataError):
                open_faces(str(out))
        packed([face_set_path], out, num_shards=2)
        assert content(out) == expected, f"killed at file {number}"
        assert names_below(out) == sorted(expected), f"killed at file {number}"
        shutil.rmtree(out)
    # pack.json, 6 runs or more, two shards of two files and a note each, four files beside them.
    assert number >= 1 + 6 + 6 + 4
    assert left_over > 5


def test_pack__finished_shards_are_kept_and_damaged_ones_written_anew(
    tmp_path: Path, face_set_path: str
) -> None:
    """The same command on a finished set reads it; a changed byte in a shard is mended."""
    packed([face_set_path], tmp_path / "set", num_shards=3)
    expected = content(tmp_path / "set")
    first, second = (tmp_path / "set" / f"train-0000{n}-of-00003.rec" for n in range(2))
    stamp = first.stat().st_mtime_ns
    packed([face_set_path], tmp_path / "set", num_shards=3)
    damaged = bytearray(second.read_bytes())
    damaged[500] ^= 1
    second.write_bytes(damaged)
    packed([face_set_path], tmp_path / "set", num_shards=3)
    assert content(tmp_path / "set") == expected
    assert first.stat().st_mtime_ns == stamp


KILLS_ITSELF = """
import os, signal, sys
from lafs_ray.data.packing import session
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
real, PackOptions.task_bytes = session.write_shard, 30_000
def write_shard(merging, shard):
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(merging, shard)
session.write_shard = write_shard
pack_faces(PackOptions((sys.argv[1],), sys.argv[2], num_shards=3))
"""


def test_pack__sigkill_leaves_a_stale_lock_that_is_taken_over(
    tmp_path: Path, face_set_path: str
) -> None:
    """A killed process keeps its lock; the next one sees that it is gone and keeps its shards."""
    command = [sys.executable, "-c", KILLS_ITSELF, face_set_path, str(tmp_path / "set")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    names = names_below(tmp_path / "set")
    assert {"pack.lock", "pack.json", "scratch", "train-00000-of-00003.rec"} <= set(names)
    stamp = (tmp_path / "set" / "train-00000-of-00003.rec").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"pack\.json without manifest\.json"):
        open_faces(str(tmp_path / "set"))
    packed([face_set_path], tmp_path / "set", num_shards=3)
    assert (tmp_path / "set" / "train-00000-of-00003.rec").stat().st_mtime_ns == stamp
    packed([face_set_path], tmp_path / "whole", num_shards=3)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_pack__another_command_on_the_folder(tmp_path: Path, face_set_path: str) -> None:
    """What differs from the set that is there is named; foreign records are not touched."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    error = refusal([face_set_path], tmp_path / "set", num_shards=3, seed=4)
    assert "seed: 0 -> 4" in error.found
    assert "num_shards: 2 -> 3" in error.found
    copy = tmp_path / "train.rec"
    shutil.copy(face_set_path, copy)
    shutil.copy(face_set_path.replace(".rec", ".idx"), tmp_path / "train.idx")
    assert (
        f"sources.0.uri: {face_set_path} -> {copy}"
        in refusal([copy], tmp_path / "set", num_shards=2).found
    )
    assert "train.rec without manifest.json" in refusal([face_set_path], tmp_path).found


def test_pack__out_of_place(tmp_path: Path) -> None:
    """A set is not packed into its own source."""
    write_folder(tmp_path / "images", {"a": 2})
    error = refusal([tmp_path / "images"], tmp_path / "images" / "set")
    assert "inside the source" in error.found
    assert names_below(tmp_path / "images") == ["a"]


@pytest.mark.parametrize(
    ("options", "subject", "expected"),
    [
        ({"num_shards": 0}, "--shards", "1 to 99999"),
        ({"num_shards": 121}, "--shards", "an image a shard"),
        ({"seed": -1}, "--seed", "0 to"),
        ({"rules": ImageRules(quality=0)}, "--quality", "1 to 100"),
        ({"memory_bytes": 1 << 20}, "--memory", "at least 33554432"),
        ({"max_bad": -1}, "--max-bad", "0 to"),
    ],
)
def test_pack__impossible_option(
    tmp_path: Path, face_set_path: str, options: dict[str, Any], subject: str, expected: str
) -> None:
    """It is named before anything is written."""
    error = refusal([face_set_path], tmp_path / "set", **options)
    assert error.subject == subject
    assert expected in error.expected
    assert not (tmp_path / "set").exists()


def test_pack__disk_full(
    tmp_path: Path, face_set_path: str, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills is told; nothing half-written stands under a name; freed, it goes on."""
    packed([face_set_path], tmp_path / "whole", num_shards=2)
    calls = iter(range(100))

    def no_space(descriptor: int, real: Any = os.fsync) -> None:
        if next(calls) >= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        error = refusal([face_set_path], tmp_path / "set", num_shards=2)
    assert error.found == "disk full"
    assert not [name for name in names_below(tmp_path / "set") if name.startswith("train-")]
    assert not [n for n in names_below(tmp_path / "set" / "scratch") if n.endswith(".partial")]
    packed([face_set_path], tmp_path / "set", num_shards=2)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_pack__disk_too_small(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot fit is refused at the start, with the arithmetic."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda _: usage)
    error = refusal([face_set_path], tmp_path / "set")
    assert error.found == "0.00 GB free"
    assert "--scratch" in error.fix


def test_pack__source_that_changes_between_passes(
    tmp_path: Path, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source rewritten during the packing stops it; the next start names the difference."""
    write_face_set(tmp_path / "train.rec")
    real, pieces = session.sort_piece, []

    def sort_piece(sorting: Any, piece: Any) -> Any:
        pieces.append(piece)
        if len(pieces) == 3:
            os.utime(tmp_path / "train.rec", ns=(10**18, 10**18))
        return real(sorting, piece)

    monkeypatch.setattr(session, "sort_piece", sort_piece)
    error = refusal([tmp_path / "train.rec"], tmp_path / "set")
    assert error.subject == str(tmp_path / "train.rec")
    assert "changed at 1000000000.000" in error.found
    assert "sources.0.fingerprint" in refusal([tmp_path / "train.rec"], tmp_path / "set").found


def test_pack__in_an_object_store(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By URI, with a blank in a name, comes what comes on disk; no lock is left."""
    shutil.copytree(Path(face_set_path).parent, tmp_path / "faces")
    write_folder(tmp_path / "more images", {"a b": 2})
    # A part of the disk, by another class than the one that stands for disks.
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(
        storage, "_resolve_uri", lambda uri: (store, unquote(uri.removeprefix("store://")))
    )
    # Object stores know no folders; here they have to be there.
    (tmp_path / "set" / "scratch").mkdir(parents=True)
    out = PackOptions(
        ("store://faces/train.rec", "store://more%20images"), "store://set", num_shards=2
    )
    pack_faces(out, say=lambda _: None)
    assert "pack.lock" not in names_below(tmp_path / "set")
    assert "scratch" not in names_below(tmp_path / "set")
    packed(
        [tmp_path / "faces" / "train.rec", tmp_path / "more images"], tmp_path / "b", num_shards=2
    )
    assert images_by_label("store://set") == images_by_label(tmp_path / "b")
    assert len(images_by_label("store://set")) == 13


def test_pack__scratch_elsewhere_is_cleared(tmp_path: Path, face_set_path: str) -> None:
    """Temporary files go where they are told, in a folder of their own, and leave again."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "mine.txt").write_text("stays")
    packed([face_set_path], tmp_path / "set", scratch=str(tmp_path / "scratch"))
    assert names_below(tmp_path / "scratch") == ["mine.txt"]


def test_open_faces__an_incomplete_or_foreign_copy_of_a_set(
    tmp_path: Path, face_set_path: str
) -> None:
    """A missing shard, a shard cut short and a file that does not belong are told at start."""
    packed([face_set_path], tmp_path / "set", num_shards=3)
    last = tmp_path / "set" / "train-00002-of-00003.rec"
    data = last.read_bytes()
    with pytest.raises(DataError, match="packed as rgb"):
        open_faces(str(tmp_path / "set"), "bgr")
    last.write_bytes(data[:-4])
    with pytest.raises(DataError, match=f"expected: {len(data)} bytes, as manifest"):
        open_faces(str(tmp_path / "set"))
    last.unlink()
    last.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=f"2 of 3 shards; {last.name} is missing"):
        open_faces(str(tmp_path / "set"))
    shutil.copy(face_set_path, tmp_path / "set" / "more.rec")
    with pytest.raises(DataError, match="does not list"):
        open_faces(str(tmp_path / "set" / "more.rec"))


MEASURES_ITSELF = """
import re, sys
from pathlib import Path
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
for source in sys.argv[1:]:
    pack_faces(PackOptions((source,), source + ".set", num_shards=2, memory_bytes=32 << 20))
    print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


# Not getrusage: a child's high-water mark there begins with that of its parent, here pytest's.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pack__memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Packing 100 MB with a budget of 32 MiB takes no more than that above packing nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    image = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    count = 100_000_000 // len(image)
    write_plain(tmp_path / "small.rec", [0.0] * 10, [image] * 10)
    write_plain(tmp_path / "large.rec", [float(n % 50) for n in range(count)], [image] * count)
    command = [sys.executable, "-c", MEASURES_ITSELF]
    sources = [str(tmp_path / "small.rec"), str(tmp_path / "large.rec")]
    done = subprocess.run(
        [*command, *sources], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    small, large = (
        int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")
    )
    assert (large - small) * 1024 < 32 << 20
    assert storage.file_size(str(tmp_path / "large.rec.set" / "labels.npy")) > 4 * count
