"""Starting a run whose last step is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.engine import launch as launching
from lafs_ray.engine.launch import launch
from lafs_ray.training.meter import read_metrics
from lafs_ray.training.state import load_checkpoint
from tests.training.faces import tiny, without_times


@pytest.fixture
def finished(tmp_path: Path, face_set_path: str) -> PretrainConfig:
    """The configuration of a run that has gone through its three steps."""
    settings = ("duration=3 steps", "optim.warmup=1 steps", "checkpoints.every=1 steps")
    config = tiny(tmp_path, face_set_path, *settings)
    launch(config)
    return config


def test_launch__finished_run_is_not_started(
    finished: PretrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says where the last checkpoint is, and builds no network."""

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
