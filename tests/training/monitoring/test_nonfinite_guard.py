from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.sampler import rank_batches
from lafs_ray.errors import TrainingError
from lafs_ray.methods.lafs import Lafs
from lafs_ray.methods.optim import RowAdamW, parameter_groups
from lafs_ray.methods.supervised import Supervised
from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.train_step import train_step
from tests.training.builds import built, finetune, pretrain
from tests.training.faces import run, tiny, without_times

# Eight steps; the sixth is bad, long after the last report and before any checkpoint.
BAD = 5
SETTINGS = ["duration=8 steps", "log.every_steps=4", "batch_size=8"]
KINDS = {
    "pretrain": (PretrainConfig, Lafs, []),
    # Batch statistics of the landmark CNN move in the forward; sampled classes have own steps.
    "finetune": (FinetuneConfig, Supervised, ["margin.sample_rate=0.5"]),
}


def poison(monkeypatch: pytest.MonkeyPatch, method: type, step: int, change: Callable[[Tensor], Tensor]) -> None:
    """Change the loss of one step of a method."""
    now = []
    begin, loss = method.begin_step, method.loss  # type: ignore[attr-defined]

    def begin_step(self: Any, number: int, *, reports: bool) -> None:
        now[:] = [number]
        begin(self, number, reports=reports)

    def changed(self: Any, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = loss(self, *arguments)
        if now == [step]:
            value = change(value)
            metrics = {**metrics, "loss": value.detach()}
        return value, metrics

    monkeypatch.setattr(method, "begin_step", begin_step)
    monkeypatch.setattr(method, "loss", changed)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested state, in its order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [each for inner in value.values() for each in tensors(inner)]
    return [each for inner in value for each in tensors(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", KINDS)
def test_run__non_finite_loss(name: str, tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with the state before the bad step, bit by bit that of a run without it."""
    kind, method, more = KINDS[name]
    settings = [*SETTINGS, *more]
    every = "checkpoints.every={} steps"
    healthy = run(tiny(tmp_path / "a", face_set_path, *settings, every.format(BAD), kind=kind))
    config = tiny(tmp_path / "b", face_set_path, *settings, every.format(8), kind=kind)
    with monkeypatch.context() as patched:
        poison(patched, method, BAD, lambda loss: loss * math.nan)
        with pytest.raises(TrainingError, match=f"step {BAD + 1} of run") as raised:
            run(config)
    folder = tmp_path / "b" / config.run.name
    saved = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in saved] == [f"step-{BAD:08d}.pt"]
    expected = load_checkpoint(healthy.inputs.folder().checkpoint_uri(BAD))
    found = load_checkpoint(str(saved[0]))
    for part in ("model", "method", "optimizer"):
        ours, theirs = tensors(found[part]), tensors(expected[part])
        assert len(ours) == len(theirs)
        assert ours or part == "method"
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True)), part
    lines = [without_times(line) for line in read_metrics(str(folder / "metrics.jsonl"))]
    assert lines == [line for line in healthy.exact if line["step"] <= BAD]
    # Without the poison the run goes on to the end of the other one.
    again = run(config)
    assert again.logged[0] == f"continuing {config.run.name} at step {BAD} of 8"
    assert again.exact == healthy.exact

    written = json.loads((folder / f"not-finite-{BAD + 1:08d}.json").read_text())
    ((_, images),) = rank_batches(healthy.inputs.sampler, BAD, BAD + 1)
    (rank,) = written["ranks"]
    assert written["step"] == BAD + 1
    assert written["steps_done"] == BAD
    assert (rank["rank"], rank["loss"]) == (0, "nan")
    # Image i of the set has key i + 1.
    assert rank["keys"] == {face_set_path: (images + 1).tolist()}
    message = str(raised.value)
    assert "loss nan on rank 0 (1 of 1 ranks)" in message
    assert f"learning rate {written['learning_rate']:.3g}" in message
    assert f"train.rec {images[0] + 1}, " in message
    assert f"the state after step {BAD} is saved" in message


def test_run__first_step_is_bad(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was trained, so nothing is saved; a gradient that is not finite names its weights."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:
            return gradient * math.inf

    poison(monkeypatch, Lafs, 0, Overflow.apply)
    with pytest.raises(TrainingError, match="a finite loss") as raised:
        run(tiny(tmp_path, face_set_path, "log.every_steps=2"))
    message = str(raised.value)
    assert "step 1 of run debug" in message
    assert "no step was completed" in message
    assert "non-finite gradients in " in message
    assert "backbone." in message
    assert not (tmp_path / "debug" / "checkpoints").exists()
    assert read_metrics(str(tmp_path / "debug" / "metrics.jsonl")) == []


class HostReads(TorchDispatchMode):
    """Notes each operation that hands a number from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [pretrain, finetune])
def test_train_step__reads_nothing_back(kind: Callable[[], Any]) -> None:
    """With the fused optimizer, as on GPUs, no step waits for the device; `find_nonfinite` does."""
    run_ = built(kind(), num_classes=12)
    groups = parameter_groups(run_.task.trainable, 0.1)
    run_.optimizer = RowAdamW(groups, lr=1e-3, fused=True)
    columns = {
        "images": np.zeros((8, 112, 112, 3), np.uint8),
        "label": np.arange(8),
        "global_tokens": np.zeros((8, 2, 49, 768), np.uint8),
        "local_tokens": np.zeros((8, 2, 9, 768), np.uint8),
    }
    for step in range(2):
        one = StepBatch(step, 0, columns, [])
        with HostReads() as reads:
            metrics = train_step(run_, one, run_.hparams(step))
            Meter(8).add(metrics, 0.0, {}, run_.guard.skip_update)
        assert reads.count == 0
    with HostReads() as reads:
        assert run_.guard.find_nonfinite() is None
    assert reads.count == 1
