"""Packing under kills, full disks, bad records and other processes on its folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.packed_set import ShardEntry
from lafs_ray.data.packing import session
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.options import PackPlan
from lafs_ray.data.packing.pack_dir import FinishedShard, PackDir
from lafs_ray.errors import DataError
from tests.data.packing.sets import content, names_below, packed, refusal
from tests.training.faces import NO_IMAGE, ROOT, break_frame, face_jpegs, write_face_set


def damaged_set(folder: Path) -> Path:
    """Write 120 faces: a broken frame (image 5), not an image (7), another size (9)."""
    wrong_size = face_jpegs(1, size=(96, 96))[0]
    write_face_set(folder / "bad.rec", replaced={7: NO_IMAGE, 9: wrong_size})
    break_frame(folder / "bad.rec", 5)
    return folder / "bad.rec"


def test_bad_records__are_counted_listed_and_left_out(tmp_path: Path) -> None:
    """The rest is packed; the manifest lists them in the order of the source."""
    manifest = packed([damaged_set(tmp_path)], tmp_path / "set", num_shards=2, max_bad=3)
    assert manifest.images == 117
    assert manifest.left_out["images"] == 3
    named = manifest.left_out["first"]
    for key, words, line in zip([6, 8, 10], ["0x00000000", "do not decode", "96x96"], named, strict=True):
        assert f"bad.rec, key {key}" in line
        assert words in line


def test_bad_records__more_than_allowed(tmp_path: Path, small_runs: None) -> None:
    """One too many stops with a list of them; with a larger --max-bad the packing continues."""
    source = damaged_set(tmp_path)
    error = refusal([source], tmp_path / "set", max_bad=2)
    assert error.subject == "bad records"
    assert error.found.startswith("3")
    assert error.found.count("bad.rec, key") == 3
    assert error.expected == "at most 2 (--max-bad), and at least one usable image"
    assert packed([source], tmp_path / "set", max_bad=3).left_out["images"] == 3


@pytest.mark.parametrize("max_bad", [2, 100])
def test_bad_records__all_of_them(tmp_path: Path, max_bad: int) -> None:
    """The error names the size and --resize; then the same folder can be packed with it."""
    (tmp_path / "photos").mkdir()
    for number, jpeg in enumerate(face_jpegs(4, size=(224, 224))):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg)
    error = refusal([tmp_path / "photos"], tmp_path / "set", max_bad=max_bad)
    assert "0.jpg: found 224x224; expected a JPEG or PNG of 112x112" in error.found
    assert "--resize" in error.fix
    rules = ImageRules(resize=True)
    assert packed([tmp_path / "photos"], tmp_path / "set", rules=rules).images == 4


def test_bad_records__leave_a_shard_empty(tmp_path: Path) -> None:
    """With more shards than usable images, the error lists the records left out."""
    write_face_set(tmp_path / "train.rec", 1, 3, replaced={0: NO_IMAGE, 1: NO_IMAGE})
    error = refusal([tmp_path / "train.rec"], tmp_path / "set", num_shards=3)
    assert error.subject.startswith("train-0000")
    assert "bad records left out: 2" in error.found
    assert "train.rec, key 1" in error.found


class Killed(BaseException):
    """End of the process: not caught, and nothing is cleaned up."""


def test_pack__killed_at_any_file_and_restarted(
    tmp_path: Path, face_set_path: str, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of its renames, the same command ends with the same set."""
    packed([face_set_path], tmp_path / "whole", num_shards=2)
    expected, number, num_partial = content(tmp_path / "whole"), 0, 0
    for number in range(100):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            calls = iter(range(100))

            def replace(old: str, new: str, real: Any = os.replace, calls: Any = calls, last: int = number) -> None:
                if next(calls) == last:
                    patched.setattr(os, "unlink", lambda _: None)
                    raise Killed
                real(old, new)

            patched.setattr(os, "replace", replace)
            try:
                packed([face_set_path], out, num_shards=2)
                break
            except Killed:
                num_partial += any(name.endswith(".partial") for name in names_below(out))
        if number > 0:
            with pytest.raises(DataError):
                open_faces(str(out))
        packed([face_set_path], out, num_shards=2)
        assert content(out) == expected, f"killed at file {number}"
        assert names_below(out) == sorted(expected), f"killed at file {number}"
        shutil.rmtree(out)
    # pack.json, 6 runs or more, two shards of two files and a note each, four files beside them.
    assert number >= 1 + 6 + 6 + 4
    assert num_partial > 5


def test_pack__keeps_finished_shards_and_rewrites_damaged_ones(tmp_path: Path, face_set_path: str) -> None:
    """The same command on a finished set only reads it; a changed byte in a shard is repaired."""
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
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
real, PackOptions.task_bytes = session.write_shard, 30_000
def write_shard(inputs, shard):
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(inputs, shard)
session.write_shard = write_shard
pack_faces(PackOptions((sys.argv[1],), sys.argv[2], num_shards=3))
"""


def test_pack__continues_after_sigkill(tmp_path: Path, face_set_path: str) -> None:
    """The lock file of a killed process does not block the next one, which keeps its shards."""
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


def test_pack__another_request_on_the_folder(tmp_path: Path, face_set_path: str) -> None:
    """The differences from the existing set are listed; foreign records are not touched."""
    packed([face_set_path], tmp_path / "set", num_shards=2)
    error = refusal([face_set_path], tmp_path / "set", num_shards=3, seed=4)
    assert "seed: 0 -> 4" in error.found
    assert "num_shards: 2 -> 3" in error.found
    copy = tmp_path / "train.rec"
    shutil.copy(face_set_path, copy)
    shutil.copy(face_set_path.replace(".rec", ".idx"), tmp_path / "train.idx")
    assert f"sources.0.uri: {face_set_path} -> {copy}" in refusal([copy], tmp_path / "set", num_shards=2).found
    assert "train.rec without manifest.json" in refusal([face_set_path], tmp_path).found


def test_pack__disk_full(tmp_path: Path, face_set_path: str, small_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is reported and leaves no partial file; with space again, packing continues."""
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


def test_pack__disk_too_small(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that cannot fit is an error at the start, with the arithmetic."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda _: usage)
    error = refusal([face_set_path], tmp_path / "set")
    assert error.found == "0 MB free"
    assert "--scratch" in error.fix


def test_pack__source_that_changes_between_passes(
    tmp_path: Path, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source rewritten during packing stops it; the next start lists the difference."""
    write_face_set(tmp_path / "train.rec")
    real, ranges = session.sort_records, []

    def sort_records(plan: Any, record_range: Any) -> Any:
        ranges.append(record_range)
        if len(ranges) == 3:
            os.utime(tmp_path / "train.rec", ns=(10**18, 10**18))
        return real(plan, record_range)

    monkeypatch.setattr(session, "sort_records", sort_records)
    error = refusal([tmp_path / "train.rec"], tmp_path / "set")
    assert error.subject == str(tmp_path / "train.rec")
    assert "modified at 1000000000.000" in error.found
    assert "sources.0.fingerprint" in refusal([tmp_path / "train.rec"], tmp_path / "set").found


def test_pack__scratch_was_deleted(tmp_path: Path, face_set_path: str) -> None:
    """Without the temporary files of a killed process, the same command starts over; others are refused, because there
    are shards."""
    manifest = packed([face_set_path], tmp_path / "set", num_shards=2)
    expected = content(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    (tmp_path / "set" / "pack.json").write_text(json.dumps(manifest.request))
    error = refusal([face_set_path], tmp_path / "set", num_shards=2, seed=1)
    assert "train-00000-of-00002.rec" in error.found
    packed([face_set_path], tmp_path / "set", num_shards=2)
    assert content(tmp_path / "set") == expected


def test_pack__scratch_elsewhere_is_cleaned_up(tmp_path: Path, face_set_path: str) -> None:
    """Temporary files get a subfolder of --scratch and are deleted at the end."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "mine.txt").write_text("stays")
    packed([face_set_path], tmp_path / "set", scratch=str(tmp_path / "scratch"))
    assert names_below(tmp_path / "scratch") == ["mine.txt"]


def test_open_faces__incomplete_or_foreign_copy_of_a_set(tmp_path: Path, face_set_path: str) -> None:
    """A missing shard, a truncated shard and a foreign file are reported at the start."""
    packed([face_set_path], tmp_path / "set", num_shards=3)
    last = tmp_path / "set" / "train-00002-of-00003.rec"
    data = last.read_bytes()
    with pytest.raises(DataError, match="packed as rgb"):
        open_faces(str(tmp_path / "set"), "bgr")
    last.write_bytes(data[:-4])
    with pytest.raises(DataError, match=f"expected: {len(data)} bytes, according to manifest"):
        open_faces(str(tmp_path / "set"))
    last.unlink()
    last.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=f"2 of 3 shards; {last.name} is missing"):
        open_faces(str(tmp_path / "set"))
    shutil.copy(face_set_path, tmp_path / "set" / "more.rec")
    with pytest.raises(DataError, match="does not list"):
        open_faces(str(tmp_path / "set" / "more.rec"))


def test_finished_shards__damaged_entry(tmp_path: Path) -> None:
    """A flipped bit in the entry of a finished shard, its labels included: the shard counts as not written."""
    plan = SimpleNamespace(scratch=str(tmp_path / "scratch"), out=str(tmp_path))
    place = PackDir(cast(PackPlan, plan))
    shard = FinishedShard(3, ShardEntry("train-00003-of-00004.rec", 5, 100, "0" * 32, "1" * 32), bytes(range(20)))
    place.mark_finished(shard)
    assert place.finished_shards() == [shard]
    path = tmp_path / "scratch" / "shard-00003.done"
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert place.finished_shards() == []
