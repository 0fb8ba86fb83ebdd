from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lafs_ray.methods.optim import parameter_groups
from lafs_ray.training.input_pipeline import StepBatch, split
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.train_loop import train
from lafs_ray.training.train_step import TrainState, step_seed, train_step
from tests.training.faces import run, tiny


class Recorder:
    """A task that records in which order the loop calls it; its loss is the mean of w·x."""

    def __init__(self) -> None:
        self.trainable = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.trainable.weight)
        self.calls: list[Any] = []
        self.reported: list[bool] = []

    def begin_step(self, step: int, *, reports: bool) -> None:
        self.reported.append(reports)
        self.calls.append(("begin_step", step))

    def loss(
        self, network: nn.Module, batch: dict[str, Tensor], hparams: dict[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls.append(("loss", batch["x"].flatten().tolist()))
        loss = network(batch["x"]).mean() + 0 * hparams["lr"]
        return loss, {"loss": loss}

    def before_optimizer(self, epoch: int, hparams: dict[str, float]) -> None:
        gradient = self.trainable.weight.grad
        assert gradient is not None
        self.calls.append(("before_optimizer", epoch, hparams["lr"], gradient.item()))

    def finish_step(self, hparams: dict[str, float], skip_update: Tensor) -> None:
        assert skip_update.ndim == 0
        assert self.trainable.weight.grad is None
        self.calls.append(("finish_step", hparams["lr"], self.trainable.weight.item()))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class RowSGD(torch.optim.SGD):
    """Plain steps, of known sizes, with `RowAdamW`'s `skip_update`."""

    skip_update: Tensor | None = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        if self.skip_update is None or not self.skip_update > 0:
            super().step()


def training(accumulation: int = 1, clip_grad: float | None = None) -> TrainState:
    task = Recorder()
    return TrainState(
        task=task,
        network=task.trainable,
        optimizer=RowSGD(parameter_groups(task.trainable, 0.0), lr=99.0),
        hparams=lambda step: {"lr": 0.1 * (step + 1), "weight_decay": 0.0},
        device=torch.device("cpu"),
        precision=torch.float32,
        seed=0,
        rank=0,
        accumulation=accumulation,
        clip_grad=clip_grad,
        max_bad_records=0,
    )


def batch(step: int, *values: float) -> StepBatch:
    column = np.array(values, dtype=np.float32)[:, None]
    return StepBatch(step, step // 2, {"x": column}, [])


def test_train_step__order_of_its_parts() -> None:
    """Loss of each micro-batch in row order, whole gradient, optimizer with this step's rate."""
    run_ = training(accumulation=2)
    metrics = train_step(run_, batch(3, 1, 2, 3, 6), run_.hparams(3))
    calls = run_.task.calls  # type: ignore[attr-defined]
    assert calls[:3] == [("begin_step", 3), ("loss", [1, 2]), ("loss", [3, 6])]
    assert calls[3] == ("before_optimizer", 1, 0.4, 3.0)
    name, rate, weight = calls[4]
    assert (name, rate) == ("finish_step", 0.4)
    # float32 has 24 bits.
    assert weight == pytest.approx(1 - 0.4 * 3.0, abs=1e-6)
    assert metrics["loss"].item() == 3.0


def test_train_step__clips_the_whole_gradient() -> None:
    """Clipping sees the sum of all micro-batches, and the norm told is that before clipping."""
    run_ = training(accumulation=2, clip_grad=0.5)
    metrics = train_step(run_, batch(0, 1, 2, 3, 6), run_.hparams(0))
    assert metrics["gradient_norm_max"].item() == 3.0
    # clip_each_ divides by norm + 1e-6.
    assert run_.task.calls[3][3] == pytest.approx(0.5, rel=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("first", "reports", "saves"), [(0, [3, 4, 6, 8, 9, 10], [4, 8, 10]), (4, [6, 8, 9, 10], [8, 10]), (9, [10], [10])]
)
def test_train__reports_and_saves_at_the_same_steps_from_anywhere(
    first: int, reports: list[int], saves: list[int]
) -> None:
    """Which steps are reported and saved depends on the step alone; saved steps are reported."""
    run_, events = training(), []

    def batches() -> Iterator[StepBatch]:
        for step in range(first, 10):
            yield batch(step, float(step))

    train(
        run_,
        batches(),
        Meter(1),
        last_step=10,
        report=lambda line: events.append(("report", line["step"], line["epoch"])),
        report_every=3,
        save=lambda step: events.append(("save", step)),
        save_every=4,
    )
    assert [event[1] for event in events if event[0] == "report"] == reports
    assert [event[1] for event in events if event[0] == "save"] == saves
    # Each step was told before its loss whether a report follows.
    told = run_.task.reported  # type: ignore[attr-defined]
    assert told == [step + 1 in reports for step in range(first, 10)]
    assert all(event[2] == (event[1] - 1) // 2 for event in events if event[0] == "report")
    for index, event in enumerate(events):
        if event[0] == "save":
            assert events[index - 1][:2] == ("report", event[1])


def test_split__keeps_rows_in_order() -> None:
    """Micro-batches are equal slices that join to the batch again."""
    parts = split(batch(0, *range(12)), 3)
    assert [part["x"].flatten().tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_step_seed__differs_for_each_step_rank_and_seed() -> None:
    """No two of (seed, step, rank) share their dropout."""
    seeds = {step_seed(a, b, c) for a in range(4) for b in range(50) for c in range(4)}
    assert len(seeds) == 4 * 50 * 4


def test_accumulation__does_not_change_the_losses(tmp_path: Path, face_set_path: str) -> None:
    """16 faces as one batch and as two of eight: the same losses and gradients without dropout."""
    settings = ["batch_size=16", "model.dropout=0.0", "model.drop_path=0.0", "duration=3 steps"]
    whole, halves = (run(tiny(tmp_path / n, face_set_path, *settings, f"accumulation={n}")) for n in "12")
    # Sums over 16 faces in another order differ in float32's last bits (measured: 1.3e-7).
    for name in ("loss", "gradient_norm_max"):
        ours, theirs = ([line[name] for line in one.metrics] for one in (whole, halves))
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)
