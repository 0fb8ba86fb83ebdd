from __future__ import annotations

import io
import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lafs_ray.engine.console import BarHandler, LineHandler, log_to, terminal_handler
from lafs_ray.engine.signals import StopRequest
from lafs_ray.training.prepare import RunInputs, check_run
from tests.training.faces import tiny

logger = logging.getLogger("lafs_ray.tests")
REPORT = {"step": 40, "epoch": 2, "loss": 1.23456, "lr": 5e-4, "images_per_s": 16.0, "wait_share": 0.25}
METRICS = "epoch 2  loss 1.2346  lr 5.00e-04  16 images/s  data wait 25%"


def inputs(folder: Path, data: str) -> RunInputs:
    return check_run(tiny(folder, data, "duration=100 steps"))


def show(report: dict[str, Any]) -> None:
    logger.info("step %d", report["step"], extra={"report": report})


def test_lines__one_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's messages are printed in order, warnings as such; debug messages are not."""
    with log_to(LineHandler()):
        logger.info("hello")
        show(REPORT)
        logger.debug("nothing")
        logger.warning("full")
    logger.info("after the job")
    assert capsys.readouterr().out == "hello\nstep 40\nwarning: full\n"


def test_bar__moves_and_keeps_lines_above_it(tmp_path: Path, face_set_path: str) -> None:
    """The bar is drawn in place; messages meanwhile are whole lines of their own."""
    out = io.StringIO()
    bar = BarHandler(inputs(tmp_path, face_set_path), out)
    with log_to(bar):
        logger.info("before")
        show(REPORT)
        logger.info("between")
        show({**REPORT, "step": 100, "loss": 0.5})
    bar.close()
    text = out.getvalue()
    assert text.startswith("before\n")
    assert "between\n" in text.replace("\r", "\n")
    assert "debug:  40%" in text
    assert METRICS in text
    last = text.rstrip("\n").rpartition("\r")[2]
    assert "100/100" in last
    assert "loss 0.5000" in last


@pytest.mark.parametrize(
    ("is_terminal", "size", "kind"),
    [
        (True, (80, 24), BarHandler),
        (True, (80, 0), LineHandler),
        (True, (0, 24), LineHandler),
        (False, (80, 24), LineHandler),
    ],
)
def test_terminal_handler__where_there_is_room(
    is_terminal: bool,
    size: tuple[int, int],
    kind: type,
    tmp_path: Path,
    face_set_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Job logs and pipes get lines, and so does a terminal that does not know its size."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size(size))
    assert type(terminal_handler(inputs(tmp_path, face_set_path))) is kind


class Local:
    """An actor's handle without Ray: a remote call is a call."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


def test_follow__logs_what_workers_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver logs the workers' messages and reports in order, with levels and arguments."""
    pytest.importorskip("ray")
    from lafs_ray.engine import driver_channel, follower

    monkeypatch.setattr(follower.ray, "get", lambda value: value)
    monkeypatch.setattr(follower, "leaving_nodes", set)
    channel = driver_channel.DriverChannel()
    with log_to(driver_channel.ChannelHandler(Local(channel))):
        logger.info("continuing %s", "debug")
        show(dict(REPORT))
        logger.warning("full")
    sent = pickle.loads(pickle.dumps(channel.drain_log()))
    assert [getattr(record, "report", None) for record in sent] == [None, REPORT, None]
    for record in sent:
        channel.log(record)
    with log_to(LineHandler()), follower.Follower(Local(channel), None, StopRequest()):
        pass
    assert capsys.readouterr().out == "continuing debug\nstep 40\nwarning: full\n"
    assert channel.drain_log() == []
