from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import local_stream
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import Hooks, run_local, run_rank, training_device
from tests.training.faces import NO_IMAGE, ROOT, Result, arguments, run, tiny, without_times, write_face_set

# 17 steps of 8 faces: two epochs (of 15 steps), three step blocks. Reports and checkpoints are at different steps, so a
# checkpoint lies between two reports.
LONG = ["duration=17 steps", "checkpoints.every=4 steps", "log.every_steps=3"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Result:
    """A run that nothing disturbed."""
    return run(tiny(tmp_path_factory.mktemp("uninterrupted"), face_set_path, *LONG))


def test_run__same_seed_same_losses(tmp_path: Path, face_set_path: str) -> None:
    """The same seed gives the same metrics bit by bit, another seed another loss at each step."""
    first, second, other = (
        run(tiny(tmp_path / name, face_set_path, f"run.seed={seed}")) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [line["step"] for line in first.metrics] == [1, 2, 3, 4]
    assert [json.dumps(line) for line in first.exact] == [json.dumps(line) for line in second.exact]
    for ours, theirs in zip(first.metrics, other.metrics, strict=True):
        assert ours["loss"] != theirs["loss"]


def test_run__supervised_same_seed_same_losses(tmp_path: Path, face_set_path: str) -> None:
    """Stage 1 too is bit-equal for a seed, and resumes to the same numbers in a later epoch."""
    settings = ["batch_size=40", "duration=4 steps", "checkpoints.every=1 steps"]
    complete, broken = (tiny(tmp_path / name, face_set_path, *settings, kind=FinetuneConfig) for name in "ab")
    expected = run(complete).exact
    run(broken, killed_at=2)
    assert run(broken).exact == expected
    assert {line["epoch"] for line in expected} == {0, 1}


@pytest.mark.parametrize("killed_at", [2, 5, 16])
def test_run__interrupted_and_continued(
    tmp_path: Path, face_set_path: str, uninterrupted: Result, killed_at: int
) -> None:
    """Ended at any step and continued, metrics.jsonl is that of a run that nothing disturbed."""
    config = tiny(tmp_path, face_set_path, *LONG)
    broken = run(config, killed_at=killed_at)
    assert broken.logged[-1] == "killed"
    again = run(config)
    assert again.exact == uninterrupted.exact
    saved = killed_at // 4 * 4
    if saved:
        assert again.logged[0] == f"continuing debug at step {saved} of 17"


def test_run__interrupted_twice_with_other_reporting_settings(
    tmp_path: Path, face_set_path: str, uninterrupted: Result
) -> None:
    """The distance between checkpoints may change when a run continues; its losses may not."""
    config = tiny(tmp_path, face_set_path, *LONG, "log.every_steps=1")
    run(config, killed_at=6)
    other = tiny(tmp_path, face_set_path, *LONG, "log.every_steps=1", "checkpoints.every=3 steps")
    run(other, killed_at=10)
    result = run(other)
    assert [line["step"] for line in result.metrics] == list(range(1, 18))
    # There, steps 4, 16 and 17 had just followed another report: their lines cover one step, too.
    expected = {line["step"]: line for line in uninterrupted.exact}
    for step in (4, 16, 17):
        assert result.exact[step - 1] == expected[step]


def test_run__killed_mid_epoch(tmp_path: Path, face_set_path: str, uninterrupted: Result) -> None:
    """SIGKILL after a checkpoint: the same command continues, no line differs or comes twice."""
    command = [sys.executable, *arguments("pretrain", tmp_path, face_set_path, *LONG)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "debug" / "checkpoints" / "step-00000004.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    before = read_metrics(str(tmp_path / "debug" / "metrics.jsonl"))
    assert before[-1]["step"] < 17
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing debug at step " in done.stdout
    lines = (tmp_path / "debug" / "metrics.jsonl").read_text().splitlines()
    found = [json.dumps(without_times(json.loads(line))) for line in lines]
    assert found == [json.dumps(line) for line in uninterrupted.exact]


def test_run__already_finished(tmp_path: Path, face_set_path: str) -> None:
    """Starting a finished run again trains nothing and leaves its metrics as they are."""
    config = tiny(tmp_path, face_set_path)
    first = run(config)
    again = run(config)
    assert again.metrics == first.metrics
    assert again.logged == ["continuing debug at step 4 of 4"]


def test_run__damaged_records_after_a_restart(tmp_path: Path) -> None:
    """Damaged records met before an interruption still count afterwards."""
    write_face_set(tmp_path / "a.rec", 4, 10, replaced=dict.fromkeys((5, 17), NO_IMAGE))
    settings = ["duration=5 steps", "checkpoints.every=1 steps"]
    complete, broken = (tiny(tmp_path / name, tmp_path / "a.rec", *settings) for name in "ab")
    expected = run(complete).exact
    assert expected[-1]["skipped_records"] == 2, "40 faces: an epoch of five steps of eight"
    run(broken, killed_at=4)
    assert run(broken).exact == expected


def test_run__more_damaged_records_than_allowed(tmp_path: Path) -> None:
    """The limit ends a run in its words, after saving the steps before; a restart does not reset the count."""
    write_face_set(tmp_path / "a.rec", 4, 10, replaced=dict.fromkeys((5, 17, 23), NO_IMAGE))
    settings = ["duration=5 steps", "checkpoints.every=5 steps", "data.max_bad_records=2"]
    config = tiny(tmp_path, tmp_path / "a.rec", *settings)
    for _ in range(2):
        with pytest.raises(DataError, match="3 so far"):
            run(config)
        (saved,) = (tmp_path / "debug" / "checkpoints").iterdir()
        assert 0 < int(saved.stem.removeprefix("step-")) < 5


def test_run__supervised_with_a_damaged_record(tmp_path: Path) -> None:
    """A labeled set with one damaged record among those looked at first still trains."""
    write_face_set(tmp_path / "a.rec", 4, 10, replaced={0: b""})
    config = tiny(tmp_path, tmp_path / "a.rec", "duration=5 steps", kind=FinetuneConfig)
    assert run(config).metrics[-1]["skipped_records"] == 1


def test_metrics__are_complete_and_finite(uninterrupted: Result) -> None:
    """Each line has step, epoch, schedules, loss and speeds; epochs change where they should."""
    for line in uninterrupted.metrics:
        assert line["epoch"] == (line["step"] - 1) // 15
        assert {"lr", "weight_decay", "ema_momentum", "teacher_temp", "loss"} <= line.keys()
        assert {"images_per_s", "wait_share", "gradient_norm_max", "skipped_records"} <= line.keys()
        assert 0 <= line["wait_share"] <= 1
        assert all(value == value for value in line.values()), "nan"
    steps = [line["step"] for line in uninterrupted.metrics]
    assert steps == [3, 4, 6, 8, 9, 12, 15, 16, 17], "every third step, and every checkpoint"


def test_hooks__report_at_the_step_and_word_when_it_is_written(tmp_path: Path, face_set_path: str) -> None:
    """`after_save` carries its step's report at once; `written` comes when the file is there."""
    inputs = prepare_run(tiny(tmp_path, face_set_path, "checkpoints.every=2 steps", "log.every_steps=3"))
    preprocess, reported, arrived = inputs.preprocessor(), [], []

    def written(step: int) -> None:
        arrived.append(step)
        assert step in inputs.folder().steps()

    run_rank(
        inputs,
        lambda first, stop: local_stream(inputs.faces, inputs.sampler, preprocess, first, stop),
        device=torch.device("cpu"),
        hooks=Hooks(after_save=lambda line: reported.append(line["step"]), after_write=written),
    )
    assert reported == [2, 4]
    assert arrived == [2, 4]


def test_open_job__frozen_landmarks_of_another_file(tmp_path: Path, face_set_path: str) -> None:
    """A run cannot continue on other landmark weights than those it was started with."""
    for name, seed in (("one", 1), ("two", 2)):
        inputs = prepare_run(tiny(tmp_path / name, face_set_path, f"run.seed={seed}"))
        torch.save(inputs.frozen_landmarks(), tmp_path / f"{name}.pt")
    weights = tmp_path / "weights.pt"
    weights.write_bytes((tmp_path / "one.pt").read_bytes())
    config = tiny(tmp_path, face_set_path, f"landmarks.weights={weights}")
    run(config, killed_at=3)
    weights.write_bytes((tmp_path / "two.pt").read_bytes())
    with pytest.raises(ConfigError, match="landmarks.weights"):
        prepare_run(config)


def test_training_device__without_a_gpu(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for a GPU where there is none is refused with the two settings that help."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny(tmp_path, face_set_path, "compute.device=cuda")
    with pytest.raises(ConfigError, match="compute.device=cpu compute.precision=float32"):
        training_device(config)
    assert training_device(tiny(tmp_path, face_set_path)) == torch.device("cpu")


def test_run__continued_on_another_kind_of_cpu(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run stores the fingerprint of its crops; crops of another one are named once."""
    monkeypatch.setattr("lafs_ray.training.prepare.crop_fingerprint", lambda: "aaaa0000")
    settings = ["duration=8 steps", "checkpoints.every=4 steps", "log.every_steps=1"]
    inputs = prepare_run(tiny(tmp_path, face_set_path, *settings))
    run_local(inputs)
    assert inputs.folder().latest()["fingerprints"] == ["aaaa0000"]  # type: ignore[index]
    assert "different fingerprints" not in caplog.text
    filesystem.delete(inputs.folder().checkpoint_uri(8))
    monkeypatch.setattr("lafs_ray.training.prepare.crop_fingerprint", lambda: "bbbb1111")
    run_local(inputs)
    assert caplog.text.count("different fingerprints (aaaa0000, bbbb1111)") == 1
    assert inputs.folder().latest()["fingerprints"] == ["aaaa0000", "bbbb1111"]  # type: ignore[index]
