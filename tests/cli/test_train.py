"""Starting a run whose last step is done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lafs_ray.cli import train as launching
from lafs_ray.cli.train import dry_run, launch
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.prepare import check_run
from tests.training.faces import tiny, without_times


@pytest.fixture
def finished(tmp_path: Path, face_set_path: str) -> PretrainConfig:
    """The configuration of a run that has gone through its three steps."""
    settings = ("duration=3 steps", "optim.warmup=1 steps", "checkpoints.every=1 steps")
    config = tiny(tmp_path, face_set_path, *settings)
    launch(config)
    return config


def test_launch__finished_run_is_not_started(
    finished: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the path of the last checkpoint, and builds no network."""

    def start(_: object) -> None:
        raise AssertionError("a finished run was started")

    monkeypatch.setattr(launching, "run_in_process", start)
    launch(finished)
    newest = tmp_path / "debug" / "checkpoints" / "step-00000003.pt"
    assert f"debug is finished: {newest}\n" in capsys.readouterr().out


def test_launch__last_checkpoint_is_damaged(finished: PretrainConfig, tmp_path: Path) -> None:
    """The last step is done again, with the same result."""
    metrics = str(tmp_path / "debug" / "metrics.jsonl")
    before = [without_times(line) for line in read_metrics(metrics)]
    newest = tmp_path / "debug" / "checkpoints" / "step-00000003.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    launch(finished)
    assert load_checkpoint(str(newest))["step"] == 3
    assert [without_times(line) for line in read_metrics(metrics)] == before


def last_line(capsys: pytest.CaptureFixture[str], config: PretrainConfig) -> str:
    """The last line that the dry run of a job prints."""
    dry_run(check_run(config))
    return capsys.readouterr().out.splitlines()[-1]


def test_dry_run__what_the_job_would_do_in_its_folder(
    finished: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is finished, would continue or would begin; nothing is written."""
    assert last_line(capsys, finished) == "the run is finished"
    newest = tmp_path / "debug" / "checkpoints" / "step-00000003.pt"
    newest.unlink()
    before = sorted(tmp_path.rglob("*"))
    assert last_line(capsys, finished) == "the run would continue at step 2 of 3"
    assert sorted(tmp_path.rglob("*")) == before
    run = finished.run.model_copy(update={"name": "other"})
    other = finished.model_copy(update={"run": run})
    assert last_line(capsys, other) == "the run would begin at step 0 of 3"


def test_dry_run__cost_on_gpus(tmp_path: Path, face_set_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory and hours of a run on GPUs; of one on CPUs nothing."""
    for device in ("cuda", "cpu"):
        dry_run(check_run(tiny(tmp_path, face_set_path, f"compute.device={device}")))
        starts = {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}
        assert ({"memory", "time"} <= starts) == (device == "cuda")


def test_dry_run__folder_of_another_run(finished: PretrainConfig, tmp_path: Path) -> None:
    """It is refused as when the job starts, and may be deleted where no step is lost with it."""
    optim = finished.optim.model_copy(update={"lr": 2.0 * finished.optim.lr})
    other = finished.model_copy(update={"optim": optim})
    with pytest.raises(ConfigError, match="holds another run") as raised:
        dry_run(check_run(other))
    assert "optim.lr" in raised.value.found
    assert "may be deleted" not in raised.value.fix
    shutil.rmtree(tmp_path / "debug" / "checkpoints")
    with pytest.raises(ConfigError, match="it has no checkpoint, so its folder may be deleted"):
        dry_run(check_run(other))


def test_dry_run__faces_that_are_not_aligned(
    tmp_path: Path, face_set_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set of random pictures gets a warning with the remedy before the run; the line after it stays the last."""
    assert last_line(capsys, tiny(tmp_path, face_set_path)).startswith("the run would begin")
    dry_run(check_run(tiny(tmp_path, face_set_path)))
    shown = capsys.readouterr().out
    assert f"warning: {face_set_path}: the faces are NOT aligned" in shown
    assert "lafs align" in shown
