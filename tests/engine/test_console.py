from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lafs_ray.engine.console import Bar, Lines, terminal_display
from lafs_ray.engine.signals import StopRequest
from lafs_ray.training.prepare import RunInputs, check_run
from tests.training.faces import tiny

REPORT = {
    "step": 40,
    "epoch": 2,
    "loss": 1.23456,
    "lr": 5e-4,
    "images_per_s": 16.0,
    "wait_share": 0.25,
}
FIGURES = "epoch 2  loss 1.2346  lr 5.00e-04  16 images/s  wait 25%"


def inputs(folder: Path, data: str) -> RunInputs:
    return check_run(tiny(folder, data, "duration=100 steps"))


def test_lines__one_for_each_report(tmp_path: Path, face_set_path: str) -> None:
    """A log gets whole lines, in order, with the time left: 60 steps of 8 faces at 16 a second."""
    out = io.StringIO()
    lines = Lines(inputs(tmp_path, face_set_path), out)
    lines.say("hello")
    lines.show(REPORT)
    lines.close()
    assert out.getvalue() == f"hello\nstep  40/100  {FIGURES}  left 0:00:30\n"


def test_bar__moves_and_keeps_lines_above_it(tmp_path: Path, face_set_path: str) -> None:
    """The bar is drawn in place; lines said meanwhile are whole lines of their own."""
    out = io.StringIO()
    bar = Bar(inputs(tmp_path, face_set_path), out)
    bar.say("before")
    bar.show(REPORT)
    bar.say("between")
    bar.show({**REPORT, "step": 100, "loss": 0.5})
    bar.close()
    bar.close()
    text = out.getvalue()
    assert text.startswith("before\n")
    assert "between\n" in text.replace("\r", "\n")
    assert "debug:  40%" in text
    assert FIGURES in text
    last = text.rstrip("\n").rpartition("\r")[2]
    assert "100/100" in last
    assert "loss 0.5000" in last


@pytest.mark.parametrize(
    ("is_terminal", "size", "kind"),
    [
        (True, (80, 24), Bar),
        (True, (80, 0), Lines),
        (True, (0, 24), Lines),
        (False, (80, 24), Lines),
    ],
)
def test_terminal_display__where_there_is_room(
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
    assert isinstance(terminal_display(inputs(tmp_path, face_set_path)), kind)


class Local:
    """An actor's handle without Ray: a remote call is a call."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


def test_follow__shows_what_workers_say_and_report(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver prints the workers' lines and reports in the order in which they came."""
    pytest.importorskip("ray")
    from lafs_ray.engine import ray_train

    monkeypatch.setattr(ray_train.ray, "get", lambda value: value)
    monkeypatch.setattr(ray_train, "leaving_nodes", set)
    relay, out, ended = ray_train.DriverChannel(), io.StringIO(), threading.Event()
    relay.say("continuing")
    relay.show(dict(REPORT))
    relay.say("warning")
    ended.set()
    display = Lines(inputs(tmp_path, face_set_path), out)
    ray_train._follow(Local(relay), display, None, StopRequest(), ended)
    first, second, third = out.getvalue().splitlines()
    assert (first, third) == ("continuing", "warning")
    assert second.startswith(f"step  40/100  {FIGURES}")
    assert relay.drain() == []
