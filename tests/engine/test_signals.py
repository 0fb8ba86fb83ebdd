"""SIGTERM to a run in one process, and what a second signal does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.cli.main import run
from lafs_ray.cli.train import launch
from lafs_ray.engine.signals import stop_request
from lafs_ray.errors import Stopped
from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
from tests.training.faces import run as run_in_process
from tests.training.faces import tiny, without_times

SETTINGS = ["landmarks.source=grid", "duration=9 steps", "checkpoints.every=6 steps"]


def test_sigterm__saves_after_the_step_and_the_same_command_continues(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that SIGTERM stops in step 3 has a checkpoint of step 3 and continues from there."""
    config = tiny(tmp_path / "a", face_set_path, *SETTINGS)
    write, before = MetricsLog.write, signal.getsignal(signal.SIGTERM)

    def write_and_signal(log: MetricsLog, line: Mapping[str, Any]) -> None:
        write(log, line)
        # While the report of step 2 is written, hence it takes effect after step 3.
        if line["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "write", write_and_signal)
        with pytest.raises(Stopped, match="stopped by SIGTERM, saved after step 3 of 9"):
            launch(config)
    assert os.listdir(tmp_path / "a" / "debug" / "checkpoints") == ["step-00000003.pt"]
    assert signal.getsignal(signal.SIGTERM) == before
    launch(config)
    found = read_metrics(str(tmp_path / "a" / "debug" / "metrics.jsonl"))
    expected = run_in_process(tiny(tmp_path / "b", face_set_path, *SETTINGS)).exact
    assert [without_times(line) for line in found] == expected


def test_run__code_of_a_stopped_job(capsys: pytest.CaptureFixture[str]) -> None:
    """128 and the number of the signal, as shells have it, and one line."""

    def main(_: object) -> None:
        raise Stopped(signal.SIGTERM, "stopped by SIGTERM, saved after step 3 of 9")

    assert run(main) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM, saved after step 3 of 9\n"


def test_stop_request__second_signal(capfd: pytest.CaptureFixture[str]) -> None:
    """The first signal is a request, the second one acts as usual."""
    with stop_request(signal.SIGINT) as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signum == signal.SIGINT
        assert "SIGINT: saving after the current step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop_request__outside_the_main_thread() -> None:
    """Where Python allows no handlers (a Tune trial), the block runs without."""
    found: list[int | None] = []

    def work() -> None:
        with stop_request(signal.SIGTERM) as request:
            found.append(request.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
