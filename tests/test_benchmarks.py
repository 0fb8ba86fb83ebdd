"""Benchmarks as a user types them, as small as they go: that they run, not how fast."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.synthetic import datasets
from tests.data.aligning.test_session import write_photos
from tests.data.detection.photos import true_points, yunet_file
from tests.test_jobs import main_of

__all__ = ["yunet_file"]

ROOT = Path(__file__).parent.parent


def output(benchmark: str, *arguments: str, limit_s: float = 120) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_views__runs_to_the_end() -> None:
    """The benchmark of the views times all four sources of landmarks and prints its ratios."""
    printed = output("views", "--images", "16", "--repeats", "1")
    for source in ("per_view", "per_image", "cached", "grid"):
        assert re.search(rf"^ +\d+\.\d × the time of {source}$", printed, re.MULTILINE), printed


def test_step__equal_to_the_plain_step_and_ratio_printed() -> None:
    """The training step computes what the plain step does, and both are timed side by side."""
    size = ("--batch", "2", "--repeats", "1", "--prototypes", "256", "--device", "cpu")
    printed = output("step", *size, "--processor-time")
    assert "\nequal\n" in printed
    memory = re.search(r"^peak memory .* (\d+) MiB, plain (\d+): ratio", printed, re.MULTILINE)
    assert memory is not None, printed
    # Two images' activations and 5 M parameters' gradients and moments, in float32.
    assert all(40 < int(found) < 600 for found in memory.groups()), printed
    shares = re.findall(r" (\d+)%", printed)
    assert len(shares) == 8, printed
    assert re.search(r"^step, from tokens: .* images/s, .*: ratio \d+\.\d\d$", printed, re.MULTILINE)


def test_packed__equal_ways_and_ratios_printed() -> None:
    """Ways through the transformer that run here compute the same, with a ratio for each."""
    printed = output("packed", "--batch", "1", "--repeats", "1", "--processor-time")
    assert "\nequal\n" in printed
    for way in ("two passes", "padded, masked", "packed rows"):
        assert re.search(rf"^{way}( +\d+\.\d\d){{4}} ×$", printed, re.MULTILINE), printed


@pytest.mark.ray
@pytest.mark.long
def test_ray_cost__equal_losses_and_ratios_printed() -> None:
    """Through Ray and without it a run has the same losses, and every way's times are printed."""
    size = ("--steps", "4", "--batch", "2", "--prototypes", "64")
    printed = output("ray_cost", *size, limit_s=280)
    assert "\nequal losses in all runs\n" in printed
    for way in ("bare", "debug", "Ray"):
        row = rf"^{way} +[\d.]+ +[\d.]+ × +[\d.]+ +[\d.]+ × +[\d.]+% +[\d.]+ +[\d.]+$"
        assert re.search(row, printed, re.MULTILINE), printed


@pytest.mark.ray
@pytest.mark.long
def test_ray_cost__with_a_step_that_sleeps() -> None:
    """Both ways make all steps, through three executions of Ray Data; the bare loop's take as long as they sleep."""
    size = ("--step-sleep", "0.05", "--steps", "20", "--batch", "8", "--blocks-per-execution", "1")
    printed = output("ray_cost", *size, limit_s=400)
    for way in ("bare", "Ray"):
        row = re.search(rf"^{way} +([\d.]+) +([\d.]+) ×( +[\d.]+){{3}}$", printed, re.MULTILINE)
        assert row is not None, printed
        # Ten steps are timed.
        assert float(row[1]) > 10 * 0.05


def test_start_up__a_row_for_each_command() -> None:
    """Each command's time and its ratio to a Python that does nothing; help takes less than torch does."""
    printed = output("start_up", "--repeats", "1")
    rows = dict(re.findall(r"^\| `(.*)` \| .* \| ([\d.]+) \|$", printed, re.MULTILINE))
    assert rows["python -c pass"] == "1.0"
    assert float(rows["lafs --help"]) < float(rows["lafs --version"])
    assert len(rows) == 6


@pytest.mark.ray
@pytest.mark.long
def test_ray_start__a_line_for_each_kind_of_process() -> None:
    """Two workers, and two processes that preprocess for them, start once each, and a run has a first step."""
    printed = output("ray_start", "--steps", "2", limit_s=280)
    for kind in ("RayTrainWorker", "MapWorker"):
        assert re.search(rf"^{kind} +2( +[\d.]+){{4}} +2$", printed, re.MULTILINE), printed
    assert re.search(r"^medians of 1: first step [\d.]+ s, [\d.]+ CPU-s$", printed, re.MULTILINE), printed


def test_partial_fc__same_loss_and_ratios_printed() -> None:
    """Partial FC on one and two processes has the dense head's loss, and a line for each side."""
    printed = output("partial_fc", "--classes", "3000", "--width", "16", "--repeats", "1")
    assert "First losses at r = 1 equal the dense one" in printed
    for side in ("dense", "Partial FC, r = 0.1", "Partial FC, r = 1, each of 2"):
        assert re.search(rf"^{side} +\d+ +\d+\.\d\d +\d+ +\d+ +\d+\.\d\d$", printed, re.M), printed


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
    arms = ("from scratch", "landmarks alone", *methods, "LAFS at landmarks + regularizer")
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


def test_pack__ratios_memory_and_order() -> None:
    """Packing is timed beside a copy; a packed set mixes identities as a perfect shuffle does."""
    printed = output("pack", "--images", "1000", "--each", "20", "--repeats", "1")
    assert re.search(r"^packing takes \d+\.\d × a sequential copy$", printed, re.MULTILINE), printed
    means = {
        name: float(mean)
        for name, mean in re.findall(r"^(\w+, chunk_records \d+) +mean +([\d.]+)", printed, re.MULTILINE)
    }
    perfect = means["unpacked, chunk_records 1"]
    # An epoch has three batches of 256, so shuffle blocks are 96 neighbors of chunks: eight of them have about 40 of
    # the 50 identities. Perfectly shuffled, a batch of 256 has nearly all.
    assert abs(means["packed, chunk_records 256"] - perfect) < 2
    assert means["unpacked, chunk_records 256"] < perfect - 10


def test_checkpoints__steps_wait_for_the_copy_alone() -> None:
    """A slow storage stretches the step that waits for it, and far less the one that does not."""
    # 3 s for the only checkpoint: a second one would wait for what is left of the first, and that depends on how fast
    # the machine makes the steps between them.
    size = ("--steps", "20", "--every", "20", "--repeats", "1", "--batch", "2")
    rate = ("--mb-per-s", "2.5", "--prototypes", "512")
    printed = output("checkpoints", *size, *rate)
    maxima = re.findall(r"^(in|beside) the step .* (\d+) \(.*$", printed, re.MULTILINE)
    longest = {name: float(milliseconds) for name, milliseconds in maxima}
    assert longest["in"] > 2900, printed
    assert longest["beside"] < longest["in"] / 2, printed


def test_storage__every_way_with_its_requests() -> None:
    """All ways read the same records from the server; coalescing and packing save requests."""
    options = ("--blocks", "1", "--images", "1200", "--shards", "2")
    printed = output("storage", *options, "--latency", "0", "--training", "0")
    rows = re.findall(r"^[( ].{42} +(\d+\.\d\d) +(\d\.\d{3}) +(\d+)$", printed, re.MULTILINE)
    requests = [int(row[2]) for row in rows]
    assert len(rows) == 6, printed
    one_by_one, joined, at_once, ahead, packed, packed_ahead = requests
    assert one_by_one >= 256
    assert joined == at_once == ahead < 64
    assert packed == packed_ahead < joined


def test_sampler__order_and_costs() -> None:
    """A packed set mixes as a perfect shuffle does, an ordered one by whole chunks does not."""
    options = ("--images", "20000", "--batches", "20", "--records", "5000", "--chunks", "4", "--places", "20000")
    printed = output("sampler", *options)
    ratios = {
        name: float(ratio)
        for name, ratio in re.findall(r"^(.{28}) +[\d.]+ +\d+ to \d+ +(\d\.\d\d) +[\d.]+$", printed, re.MULTILINE)
    }
    found = {name.strip(): ratio for name, ratio in ratios.items()}
    assert found["perfect shuffle"] == 1
    assert abs(found["packed, chunk_records 256"] - 1) < 0.05, printed
    assert found["ordered, chunk_records 256"] < 0.5, printed
    assert re.search(r"^ +5000 +4 +\d+\.\d\d +\d\.\d{4} +\d+$", printed, re.MULTILINE), printed
    assert len(re.findall(r" \d+ ns per image$", printed, re.MULTILINE)) == 4, printed


def test_stream__rates_memory_and_places(tmp_path: Path) -> None:
    """Every way of reading is timed, and the first batch of any place reads one window alone."""
    printed = output("stream", "--images", "4400", "--limit", "512", "--folder", str(tmp_path))
    for name in ("plain sequential read", "ordered, chunk_records 4, bytes", "packed, debug mode"):
        assert re.search(rf"^{name}.* \d+ +\d+\.\d +\d+\.\d{{3}} +\d+$", printed, re.M), printed
    assert re.search(r"^streaming, debug mode: \+ \d+ MB, ", printed, re.M), printed
    shares = re.findall(r", (epoch .*?) +\d\.\d{3} s +[\d.]+ MB +([\d.]+)% of the set$", printed, re.M)
    assert len(shares) == 8, printed
    # A window is 2048 of 4400 records, and joined reads bring gaps between them as well.
    for place, share in shares[4:]:
        assert 3 < float(share) < 75, (place, printed)
