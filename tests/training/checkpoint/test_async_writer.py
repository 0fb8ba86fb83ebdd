"""Asynchronous checkpoints: what waits, what is retried, what is logged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.checkpoint import async_writer as writer_module
from lafs_ray.training.checkpoint.async_writer import CheckpointWriter
from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
from lafs_ray.training.checkpoint.sharded_state import cpu_copy
from lafs_ray.training.prepare import prepare_run
from tests.training.faces import logged, run, tiny

REFUSED = DataError("a.pt", found="no answer", expected="a place to write", fix="look at the store")


class Store:
    """A storage that opens its gate when the test sets it and refuses the first attempts."""

    def __init__(self, refusals: int = 0) -> None:
        self.gate = threading.Event()
        self.refusals = refusals
        self.written: list[int] = []

    def __call__(self, step: int, _: Mapping[str, Any]) -> None:
        assert self.gate.wait(10)
        if self.refusals:
            self.refusals -= 1
            raise REFUSED
        self.written.append(step)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_FIRST_WAIT_S", 0.01)


def test_begin__returns_before_the_storage_has_it() -> None:
    """Nothing waits for the storage but `wait`, which returns each checkpoint once."""
    store = Store()
    writer = CheckpointWriter(store, 5.0)
    writer.begin(3, {})
    assert writer.collect() is None
    assert store.written == []
    store.gate.set()
    assert writer.wait() == 3
    assert writer.wait() is None
    assert store.written == [3]
    assert writer.close() is None


def test_close__waits_for_the_last_one() -> None:
    """The end of a run comes after the end of the upload."""
    store = Store()
    writer = CheckpointWriter(store, 5.0)
    writer.begin(3, {})
    threading.Timer(0.2, store.gate.set).start()
    assert writer.close() == 3


def test_refusals__are_retried_and_logged(quick: None) -> None:
    """A storage that fails for a while costs lines of progress and no checkpoint."""
    store = Store(refusals=3)
    store.gate.set()
    writer = CheckpointWriter(store, 30.0)
    with logged() as lines:
        writer.begin(3, {})
        assert writer.wait() == 3
    assert lines[0] == "checkpoint of step 3 not written (no answer); trying again in 0.01 s"
    assert lines[2].endswith("trying again in 0.04 s"), "waits double"
    assert lines[3:] == ["checkpoint of step 3 written on attempt 4"]
    writer.close()


def test_refusals__for_too_long(quick: None) -> None:
    """After retry_s the storage's error is raised with tries and seconds, once."""
    store = Store(refusals=1000)
    store.gate.set()
    writer = CheckpointWriter(store, 0.1)
    writer.begin(3, {})
    with pytest.raises(DataError, match=r"no answer; gave up after \d+ tries in 0 s") as raised:
        writer.wait()
    assert "the same command then continues" in raised.value.fix
    assert writer.close() is None


def test_close__in_a_hurry() -> None:
    """A run that ends early does not wait for retry_s, but tries once more at once."""
    store = Store(refusals=1)
    store.gate.set()
    writer = CheckpointWriter(store, 3600.0)
    writer.begin(3, {})
    begin = time.monotonic()
    assert writer.close(hurry=True) == 3
    assert time.monotonic() - begin < 5


def test_mistake_of_ours__is_raised_as_it_is() -> None:
    """What is not the storage's fault is not tried again."""

    def broken(step: int, state: Mapping[str, Any]) -> None:
        raise ZeroDivisionError

    writer = CheckpointWriter(broken, 3600.0)
    writer.begin(3, {})
    with pytest.raises(ZeroDivisionError):
        writer.close()


def test_cpu_copy__of_a_nest() -> None:
    """Tensors are copied wherever they are, other values stay."""
    tensor = torch.arange(3.0)
    state = {"a": [tensor, {"b": (tensor, 7, None)}], 4: "text"}
    copy = cpu_copy(state)
    tensor.zero_()
    assert copy[4] == "text"
    assert copy["a"][1]["b"][1:] == (7, None)
    for one in (copy["a"][0], copy["a"][1]["b"][0]):
        assert one.tolist() == [0.0, 1.0, 2.0]


# Without the landmark CNN, nine tenths of a step's time.
QUICK = ["landmarks.source=grid"]
SHORT = [*QUICK, "duration=9 steps", "checkpoints.every=2 steps", "checkpoints.keep=9"]


def delayed(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Let something happen before each atomic write of a checkpoint."""
    write = filesystem.atomic_write

    def atomic_write(uri: str) -> Any:
        if uri.endswith(".pt"):
            before(uri)
        return write(uri)

    monkeypatch.setattr(filesystem, "atomic_write", atomic_write)


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [t for v in values for t in tensors(v)] if isinstance(state, dict | list) else []


def test_run__checkpoint_holds_its_own_step_however_late_it_is_written(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, teacher and moments that steps change while the storage is slow are not torn."""
    inputs = [prepare_run(tiny(tmp_path / name, face_set_path, *SHORT)) for name in ("fast", "slow")]
    run(inputs[0].config)
    delayed(monkeypatch, lambda _: time.sleep(0.5))
    run(inputs[1].config)
    for step in (2, 4, 6, 8, 9):
        fast, slow = (torch.load(one.folder().checkpoint_uri(step)) for one in inputs)
        ours, theirs = tensors(fast), tensors(slow)
        assert len(ours) == len(theirs) > 100
        assert all(map(torch.equal, ours, theirs)), step


def test_run__storage_fails_for_a_while(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Three refusals cost no step and no line; the last checkpoint is there at the end."""
    expected = run(tiny(tmp_path / "calm", face_set_path, *SHORT)).exact
    refusals = iter(range(3))

    def refuse(uri: str) -> None:
        if next(refusals, None) is not None:
            raise REFUSED

    delayed(monkeypatch, refuse)
    result = run(tiny(tmp_path / "storm", face_set_path, *SHORT))
    assert result.exact == expected
    assert result.inputs.folder().steps() == [2, 4, 6, 8, 9]
    assert sum("trying again" in line for line in result.logged) == 3


def test_run__storage_fails_for_good(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """The run ends with the storage's message; when it is back, the same run continues."""
    config = tiny(tmp_path / "a", face_set_path, *SHORT, "checkpoints.retry_s=0.05")
    with monkeypatch.context() as patched:

        def refuse(uri: str) -> None:
            if not uri.endswith("2.pt"):
                raise REFUSED

        delayed(patched, refuse)
        with pytest.raises(DataError, match="no answer; gave up after"):
            run(config)
    again = run(config)
    assert again.logged[0] == "continuing debug at step 2 of 9"
    assert again.exact == run(tiny(tmp_path / "b", face_set_path, *SHORT)).exact


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_keep_best__stays_however_old(tmp_path: Path, face_set_path: str, best_is: str) -> None:
    """Besides the newest, the checkpoint with the best loss of those ever written is kept."""
    settings = [*QUICK, "duration=8 steps", "checkpoints.every=1 steps", "checkpoints.keep=2"]
    best = ["checkpoints.keep_best=loss", f"checkpoints.best_is={best_is}"]
    result = run(tiny(tmp_path, face_set_path, *settings, *best))
    losses = {line["step"]: line["loss"] for line in result.metrics}
    chosen = (min if best_is == "lowest" else max)(losses, key=lambda step: losses[step])
    assert result.inputs.folder().steps() == sorted({chosen, 7, 8})


def test_keep_best__of_a_figure_that_is_not_there(tmp_path: Path, face_set_path: str) -> None:
    """A wrong name is refused with the right ones at the first report."""
    with pytest.raises(ConfigError, match="found:    lost, which") as raised:
        run(tiny(tmp_path, face_set_path, "checkpoints.keep_best=lost"))
    assert "loss, lr" in raised.value.expected


def test_held__by_another_process(tmp_path: Path, face_set_path: str) -> None:
    """Two processes cannot train one run; the second is refused and may come back later."""
    folder = prepare_run(tiny(tmp_path, face_set_path)).folder()
    refused = pytest.raises(ConfigError, match="another process that is training this run")
    with folder.lock(), refused, folder.lock():
        pass
    with folder.lock():
        pass


def test_held__clears_what_killed_processes_left(tmp_path: Path, face_set_path: str) -> None:
    """Partial files are deleted; complete ones stay."""
    folder = prepare_run(tiny(tmp_path, face_set_path)).folder()
    folder.save(4, {}, keep=2)
    for name in (".metrics.jsonl.0123456789ab.partial", "checkpoints/.step-1.pt.ab12.partial"):
        (tmp_path / "debug" / name).write_bytes(b"half")
    with folder.lock():
        names = filesystem.list_names(str(tmp_path / "debug"), recursive=True)
    assert names == [".lock", "checkpoints/step-00000004.pt", "config.json"]


def test_log__disk_that_refuses_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that could not be appended are written by the next flush, each once and in order."""
    path = tmp_path / "log.jsonl"
    log = MetricsLog(str(path), 0)
    log.write({"step": 1})
    with monkeypatch.context() as patched:

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(5, "Input/output error")

        patched.setattr("lafs_ray.training.checkpoint.metrics_log.open", refused, raising=False)
        log.write({"step": 2})
    log.write({"step": 3})
    assert [line["step"] for line in read_metrics(str(path))] == [1]
    log.flush()
    log.write({"step": 4})
    assert [line["step"] for line in read_metrics(str(path))] == [1, 2, 3, 4]
