"""`jobs/align.py` and `jobs/pack.py --align` as typed: outputs, messages, exit codes, Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.cli.commands import execute
from lafs_ray.data.aligning import parts
from lafs_ray.errors import ConfigError, UserError
from tests.data.aligning.test_session import mixed_folder, write_photos
from tests.data.detection.photos import mtcnn, mtcnn_folder, yunet_file
from tests.data.packing.sets import content
from tests.test_jobs import assert_refused, job

__all__ = ["mtcnn", "mtcnn_folder", "yunet_file"]


def test_align__prints_what_became_of_the_photos(
    tmp_path: Path, mtcnn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts of each kind, then the set."""
    mixed_folder(tmp_path / "photos")
    execute("align", [str(tmp_path / "photos"), str(tmp_path / "set"), "--min-eyes", "12"])
    shown = capsys.readouterr().out
    for line in (
        "4 faces of 4 of 7 photos\n",
        "  no face: 1\n",
        "  too small: 1 (less than 12 pixels between the eyes)\n",
        "  unreadable: 1\n",
        "  several faces: 1 (the largest was kept)\n",
        "  found by the second search: 1 (with a border)\n",
        "  turned as EXIF says: 1\n",
        "4 images of 0 identities in 1 shard, photos.parquet beside them\n",
    ):
        assert line in shown


def test_pack_align__writes_what_align_writes(tmp_path: Path, mtcnn: None) -> None:
    """The same command under two names."""
    write_photos(tmp_path / "photos", ["a/0.png", "b/1.png"])
    execute("align", [str(tmp_path / "photos"), str(tmp_path / "one")])
    execute("pack", [str(tmp_path / "photos"), str(tmp_path / "two"), "--align"])
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos"], "PHOTOS … OUT"),
        (["photos", "out", "--points", "p.csv"], "PHOTOS --points LIST"),
        (["photos", "out", "--min-score", "2"], "--min-score"),
        (["photos", "out", "--min-eyes", "nan"], "--min-eyes"),
        (["photos", "out", "--workers", "-1"], "--workers"),
        (["photos", "--points", "p.csv", "--workers", "-1"], "--workers"),
    ],
)
def test_align__wrong_arguments(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is read."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        execute("align", arguments)
    assert words in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos", "out", "--align", "--resize"], "--resize with --align"),
        (["photos", "out", "--align", "--landmarks", "p.csv"], "--landmarks with --align"),
        (["--inspect", "set", "--align"], "--inspect with --align"),
        (["photos", "out", "--detector", "mtcnn"], "--detector without --align"),
    ],
)
def test_pack_align__arguments_that_exclude_each_other(arguments: list[str], words: str) -> None:
    """An argument that would have no effect is refused."""
    with pytest.raises(ConfigError) as raised:
        execute("pack", arguments)
    assert words in str(raised.value)


def test_align__exit_code(tmp_path: Path) -> None:
    """A wrong detector is named, exit code 2, and nothing is written."""
    write_photos(tmp_path / "photos", ["0.png"])
    (tmp_path / "wrong.onnx").write_text("no network")
    detector = ["--detector", str(tmp_path / "wrong.onnx")]
    assert_refused(job("jobs/align.py", str(tmp_path / "photos"), str(tmp_path / "set"), *detector), "wrong.onnx")
    assert not (tmp_path / "set").exists()


def test_align__by_a_yunet_file(tmp_path: Path, yunet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file by path needs no package; a folder without images is refused."""
    write_photos(tmp_path / "photos", ["0.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="images"):
        execute("align", [str(tmp_path / "empty"), str(tmp_path / "set"), "--detector", str(yunet_file)])
    assert not (tmp_path / "set").exists()
    points = str(tmp_path / "points.csv")
    execute("align", [str(tmp_path / "photos"), "--points", points, "--detector", str(yunet_file)])
    shown = capsys.readouterr().out
    assert "1 face of 1 of 1 photo" in shown
    assert f"--landmarks {points}" in shown


def test_photos_without_labels__to_lafs_in_two_commands(
    tmp_path: Path, mtcnn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two commands of the README, made small: photos are aligned, then LAFS trains on template landmarks."""
    write_photos(tmp_path / "photos", [f"{number}.png" for number in range(16)])
    faces = str(tmp_path / "faces")
    execute("align", [str(tmp_path / "photos"), faces])
    small = ["duration=2 epochs", "batch_size=8", "compute.workers=0", "head.num_prototypes=64"]
    execute("pretrain", ["cpu", f"data.path={faces}", f"run.storage={tmp_path / 'runs'}", *small])
    assert "lafs_cpu is finished" in capsys.readouterr().out


@pytest.mark.ray
def test_align__two_workers_write_the_bytes_of_one(
    tmp_path: Path, mtcnn: None, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers get the detector from the driver: they need no package, and write the same set."""
    monkeypatch.setattr(parts, "_LEAST_PHOTOS", 16)
    write_photos(tmp_path / "photos", [f"{number:02}.png" for number in range(40)])
    execute("align", [str(tmp_path / "photos"), str(tmp_path / "one")])
    execute("align", [str(tmp_path / "photos"), str(tmp_path / "two"), "--workers", "2"])
    assert content(tmp_path / "two") == content(tmp_path / "one")
