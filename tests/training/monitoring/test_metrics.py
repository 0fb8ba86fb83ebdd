from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
from lafs_ray.training.distributed import gather_lines
from lafs_ray.training.monitoring.metrics import Meter

GO, HELD = torch.tensor(0.0), torch.tensor(1.0)


def step(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_report__means_over_steps() -> None:
    """A report averages the steps since the last one, and the next one starts from zero."""
    meter = Meter(images_per_step=4)
    for loss in (1.0, 2.0, 6.0):
        meter.add(step(loss=loss, norm=-loss), 0.0, {}, GO)
    first = meter.report(3)
    assert (first["loss"], first["norm"]) == (3.0, -3.0)
    meter.add(step(loss=10.0, norm=0.5), 0.0, {}, GO)
    second = meter.report(1)
    assert (second["loss"], second["norm"]) == (10.0, 0.5)


def test_report__mean_is_taken_in_double_precision() -> None:
    """A mean over many float32 steps does not lose the small ones."""
    meter = Meter(images_per_step=1)
    for value in (2.0**24, 1.0, 1.0, 1.0):
        meter.add(step(loss=value), 0.0, {}, GO)
    assert meter.report(4)["loss"] == (2.0**24 + 3) / 4


def test_report__speed_and_waiting() -> None:
    """Images a second count all ranks' images; the wait is a share of the time that passed."""
    meter = Meter(images_per_step=100)
    time.sleep(0.1)
    for _ in range(2):
        meter.add(step(loss=1.0), 0.025, {"read_s": 0.2, "preprocess_s": 1.0}, GO)
    report = meter.report(2)
    # A sleep may last longer on a busy machine, never shorter.
    assert 0 < report["images_per_s"] <= 2000
    assert 0 < report["wait_share"] <= 0.5
    assert report["images_per_s"] == pytest.approx(2 * 100 * report["wait_share"] / 0.05)
    # 0.2 s of reading and 1 s of cutting for each 100 images.
    assert report["read_ms"] == pytest.approx(2.0)
    assert report["preprocess_ms"] == pytest.approx(10.0)


def test_report__steps_that_were_held_do_not_count() -> None:
    """Metrics of steps after a bad one are left out of the means, and that is all that they are."""
    meter = Meter(images_per_step=4)
    for loss in (1.0, 3.0):
        meter.add(step(loss=loss), 0.0, {}, GO)
    for loss in (float("nan"), 8.0):
        meter.add(step(loss=loss), 0.0, {}, HELD)
    assert meter.report(2)["loss"] == 2.0


def test_report__metrics_of_some_steps() -> None:
    """A metric's mean is over the steps that had it, held ones aside; one that no step had is left out."""
    meter = Meter(images_per_step=4)
    meter.add(step(loss=1.0), 0.0, {}, GO)
    meter.add(step(loss=3.0, kl=2.0), 0.0, {}, GO)
    meter.add(step(loss=8.0), 0.0, {}, GO)
    found = meter.report(3)
    assert (found["loss"], found["kl"]) == (4.0, 2.0)
    meter.add(step(loss=1.0), 0.0, {}, GO)
    meter.add(step(loss=float("nan"), kl=7.0), 0.0, {}, HELD)
    found = meter.report(1)
    assert found["loss"] == 1.0
    assert "kl" not in found


def test_gather_lines__alone() -> None:
    """Without ranks the lines are this process's."""
    assert gather_lines({"a"}) == {"a"}


def written(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("is_uri", [False, True])
def test_log__lines_are_there_at_once_and_after_a_flush(tmp_path: Path, is_uri: bool) -> None:
    """A line on a disk can be read when it is written; a flush changes nothing of it."""
    path = tmp_path / "run" / "log.jsonl"
    log = MetricsLog(path.as_uri() if is_uri else str(path), 0)
    log.write({"step": 1, "loss": 0.1})
    assert written(path) == [1]
    log.write({"step": 2, "loss": 1 / 3})
    before = path.read_text()
    log.flush()
    assert path.read_text() == before
    assert [line["loss"] for line in read_metrics(str(path))] == [0.1, 1 / 3]


def test_log__drops_later_lines_on_resume(tmp_path: Path) -> None:
    """Lines after the step where a run continues come again, so the old ones go."""
    path = tmp_path / "log.jsonl"
    log = MetricsLog(str(path), 0)
    for number in range(1, 8):
        log.write({"step": number})
    resumed = MetricsLog(str(path), 4)
    assert written(path) == [1, 2, 3, 4]
    resumed.write({"step": 5})
    resumed.flush()
    assert written(path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3}', "\xff\xfe", '{"step": 3}\n\n'])
def test_log__survives_a_cut_last_line(tmp_path: Path, end: str) -> None:
    """A line truncated by a crash is dropped; a complete one without its line end is kept."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + end.encode("latin-1"))
    log = MetricsLog(str(path), 3)
    log.write({"step": 4})
    kept = [3] if "}" in end else []
    assert written(path) == [1, 2, *kept, 4]


def test_read_metrics__missing_file(tmp_path: Path) -> None:
    """No file, no lines."""
    assert read_metrics(str(tmp_path / "log.jsonl")) == []
