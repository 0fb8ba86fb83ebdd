"""Benchmarks of landmarks, alignment and learning as a user types them, as small as they go: that they run."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.synthetic import datasets
from tests.benchmarks.commands import ROOT, output
from tests.data.aligning.test_session import write_photos
from tests.data.detection.photos import true_points, yunet_file
from tests.test_jobs import main_of

__all__ = ["yunet_file"]


@pytest.mark.long
def test_few_shot__a_figure_for_every_start(tmp_path: Path) -> None:
    """The few-shot protocol trains all arms and prints a table; a second call trains nothing."""
    faces = tmp_path / "faces"
    size = {"num_identities": 32, "images_per_identity": 3, "seed": 0}
    datasets.write_faces(str(faces), **size)
    pairs = str(faces / "att_10id.bin")
    datasets.write_pair_file(pairs, num_pairs=20, identities=range(32, 40), seed=0)
    numbers = ("pretraining-steps", "finetuning-steps", "pretraining-seeds", "finetuning-seeds")
    options = [word for name in numbers for word in (f"--{name}", "1")]
    command = ("few_shot", str(tmp_path / "work"), "--att", str(faces), *options)
    command += ("--stage-1", "untrained", "--shots", "1")
    first, second = output(*command), output(*command)
    row = r"^\| 1 \|( 0\.\d{3} \|){5}$"
    assert re.search(row, first, re.MULTILINE), first
    assert "LAFS_and_regularizer-k1-p0-s0" in first
    assert "LAFS_and_regularizer-k1-p0-s0" not in second
    assert re.search(row, first, re.M)[0] == re.search(row, second, re.M)[0]  # type: ignore[index]
    for frozen in ("raw pixels", "untrained", "LAFS", "DINO-face"):
        assert re.search(rf"^\| {frozen} \| 0\.\d{{3}} \| 0\.\d{{3}} \|$", first, re.M), first


def landmark_run(folder: Path, faces: Path) -> str:
    """Make faces with their true landmarks, and train a landmark CNN on them for a step; return its run."""
    main_of("make_faces")([str(faces), "--identities", "32", "--images", "4", "--landmarks", "25"])
    points = str(faces / "landmarks-25.parquet")
    main_of("cache_landmarks")(["--from", points, str(faces), "--out", str(folder / "cache")])
    sets = [f"data.path={faces}", f"landmarks.cache={folder / 'cache'}", f"run.storage={folder}"]
    size = ["model.num_landmarks=25", "batch_size=8", "optim.warmup=1 steps", "duration=1 steps"]
    main_of("train_landmarks")([str(ROOT / "configs/landmarks/cpu.yaml"), *sets, *size])
    return str(folder / "landmarks")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--faces", "missing.rec"), r"^error: \S*/missing\.rec$"),
        (("--pairs", "missing"), r"^error: missing/lfw_dev_train\.bin$"),
        (("--landmarks", "missing"), r"^error: \S*/missing$"),
        (("--mediapipe", "missing"), "--mediapipe: missing is no program"),
        (("--methods", "distilled at landmarks to shallow"), "needs --landmarks or --mediapipe"),
        (("--methods", "LAFS at landmarks for longer"), "needs --landmarks or --mediapipe"),
        (("--methods", "DINO-face with neighbors"), "needs --landmarks or --mediapipe"),
        (("--arms", "any"), r"--arms: no \['any'\]; there are \['from scratch'"),
        (("--shots", "few"), "--shots: few is neither a number nor `all`"),
        (("--processes", "0"), "at least 1"),
    ],
)
def test_real_faces__refused_before_anything_is_made(tmp_path: Path, wrong: tuple[str, str], message: str) -> None:
    """What a user mistypes ends in a message, without a traceback."""
    faces, work = tmp_path / "faces", tmp_path / "work"
    datasets.write_faces(str(faces), num_identities=2, images_per_identity=2, seed=0)
    for name in ("lfw_dev_train.bin", "lfw_dev_test.bin"):
        datasets.write_pair_file(str(faces / name), num_pairs=20, identities=range(2, 12), seed=0)
    train = str(faces / "train.rec")
    given = {"--faces": train, "--labeled": train, "--pairs": str(faces)} | dict([wrong])
    command = [sys.executable, "-m", "benchmarks.real_faces", str(work), *itertools.chain(*given.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert re.search(message, done.stderr, re.M), done.stderr
    assert "Traceback" not in done.stderr
    assert not work.exists()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_real_faces__a_row_for_every_embedding(tmp_path: Path) -> None:
    """Baselines, a network before and after pretraining, and few labels; a second call computes nothing."""
    faces, work = tmp_path / "faces", tmp_path / "work"
    landmarks = landmark_run(tmp_path, faces)
    for name in ("lfw_dev_train.bin", "lfw_dev_test.bin"):
        datasets.write_pair_file(str(faces / name), num_pairs=20, identities=range(32, 40), seed=0)
    numbers = ("--seeds", "1", "--finetuning-seeds", "1", "--steps", "1", "--components", "8", "8")
    numbers += ("--shots", "1", "all", "--finetuning-steps", "1")
    train = str(faces / "train.rec")
    command = ("real_faces", str(work), "--faces", train, "--labeled", train, "--pairs", str(faces), *numbers)
    wider, longer = "distilled at landmarks to shallow", ("LAFS at landmarks for longer", "DINO-face for longer")
    longer += ("LAFS with neighbors", "DINO-face with neighbors")
    command += ("--methods", wider, "DINO-face", *longer, "--landmarks", landmarks, "--processes", "2")
    kinds = ("class", "class, whitened", "all, whitened", "all, neighbors")
    command += ("--readouts", *kinds)
    first, second = (output(*command, limit_s=1200) for _ in range(2))
    number = r"[01]\.\d{3}"
    rows = re.findall(rf"^\| ([^|]+) \| 1 \| {number} \| {number} \| [+-]{number} ± {number} \|$", first, re.M)
    assert rows[:3] == ["raw pixels", "whitened pixels", "whitened pixels, neighbors"]
    distilled = ("distilled at landmarks", wider)
    methods = ("LAFS at landmarks", *distilled, "DINO-face", *longer)
    expected = []
    for method in methods:
        networks = ("frozen",) if method in (*distilled, *longer) else ("untrained", "frozen")
        read = kinds[:2] if method in distilled else kinds
        expected += [f"{method}, {network}: {kind}" for network in networks for kind in read]
    assert rows[3:] == expected
    arms = ("from scratch", "landmarks alone", *methods)
    arms += ("LAFS at landmarks + regularizer", "LAFS with neighbors + regularizer")
    arms += ("landmarks alone, whitened", "LAFS at landmarks, whitened")
    assert re.findall(rf"^\| ([^|]+) \| {number} \| {number} \|$", first, re.M) == [*arms]
    subtracted = re.findall(rf"^\| (\w+) labels, (.+) − (.+) \| [+-]{number} ± {number} \|$", first, re.M)
    assert ("all", "DINO-face", "all labels, from scratch") in subtracted
    assert ("1", "LAFS at landmarks, whitened", "whitened pixels") in subtracted
    assert not [one for _, one, _ in subtracted if one in (*arms[:2], "landmarks alone, whitened")]
    assert re.search(r"^\| few-from_scratch-kall \(1\) \| \d+\.\d \|$", first, re.M)
    tables = [[line for line in printed.splitlines() if line.startswith("|")] for printed in (first, second)]
    assert tables[0] == tables[1]
    computed = [re.findall(r" [01]\.\d{4} / [01]\.\d{4}$", printed, re.M) for printed in (first, second)]
    assert (len(computed[0]) > len(rows), computed[1]) == (True, [])


def test_landmark_sources__figures_for_each(tmp_path: Path) -> None:
    """Three runs that differ in the source of landmarks alone begin with nearly the same loss."""
    faces = tmp_path / "faces"
    datasets.write_faces(str(faces), num_identities=32, images_per_identity=3, seed=0)
    pairs = str(tmp_path / "pairs.bin")
    datasets.write_pair_file(pairs, num_pairs=20, identities=range(32, 40), seed=0)
    network = tmp_path / "stage_1.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(LandmarkCNN(25, width=0.25).state_dict(), network)
    sets = ("--stage-1", str(network), "--faces", str(faces / "train.rec"), "--pairs", pairs)
    command = ("landmark_sources", str(tmp_path / "work"), *sets, "--steps", "1", "--seeds", "1")
    printed = output(*command, "--identities", "4")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d\.\d{3}) (?:\| 0\.\d{3} ){4}\|$", printed, re.M))
    assert list(rows) == ["per_view", "per_image", "cached"], printed
    # The prototypes of an untrained head tell faces apart by hundredths.
    assert abs(float(rows["per_image"]) - float(rows["cached"])) < 0.01


def test_align__faces_error_and_times(tmp_path: Path, yunet_file: Path) -> None:
    """Photos are searched, points compared with reference points, and times printed with their ratios."""
    names = [f"{number}.png" for number in range(3)]
    write_photos(tmp_path / "photos", names)
    rows = [[name, *true_points(60 + number, 64, 112).ravel()] for number, name in enumerate(names)]
    lines = [",".join(map(str, row)) for row in [["file", *range(10)], *rows]]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    reference = ("--points", str(tmp_path / "points.csv"), "--five", "0 1 2 3 4")
    size = ("--repeats", "1", "--timed", "4", "--detector", str(yunet_file))
    printed = output("align", str(tmp_path / "photos"), *reference, *size)
    assert "3 of 3 photos with a face" in printed
    error = re.search(r"^mean error of the five points (\d+\.\d\d)% ", printed, re.MULTILINE)
    assert error is not None, printed
    assert float(error[1]) < 4  # A pixel of the close-up is 2.5 % of the distance.
    assert re.search(r"4 photos: [\d.]+ ms a photo from file to set, [\d,]+ an hour", printed), printed
    assert re.search(r"ratio of the job \d+\.\d\d; .* ratio \d+\.\d\d$", printed, re.MULTILINE), printed


def test_alignment__a_line_for_each_set(tmp_path: Path) -> None:
    """Generated faces are aligned, in every sample of thirty."""
    datasets.write_faces(str(tmp_path / "faces"), num_identities=16, images_per_identity=3, seed=0)
    printed = output("alignment", str(tmp_path / "faces" / "train.rec"), "--images", "40")
    assert re.search(r"^ +40 +0\.\d\d .* 100\.0% aligned .*train\.rec$", printed, re.MULTILINE), printed
