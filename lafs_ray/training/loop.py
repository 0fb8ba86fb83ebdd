"""The one training loop: it knows a method, an optimizer and schedules; nothing of faces or Ray.

The same function trains in the driver process (debug mode) and in every Ray Train worker; `report`
and `save` are all that differs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lafs_ray.errors import CheckpointError, DataError, TrainingError
from lafs_ray.methods.optim import RowAdamW, clip_each_, gradient_norms, set_hyperparameters
from lafs_ray.training.checkpoint.sharded_state import cpu_copy, gather_state, load_gathered
from lafs_ray.training.distributed import Vote, is_first
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite, NonFiniteGuard
from lafs_ray.training.run_request import RunRequest

_STEP_STREAM = 0x73746570

TensorBatch = dict[str, Tensor]


class TrainTask(Protocol):
    """What the loop knows of LAFS pretraining and of supervised training."""

    @property
    def trainable(self) -> nn.Module:
        """What the optimizer trains and DDP wraps."""

    def begin_step(self, step: int) -> None:
        """What is drawn from now on is that of this global step."""

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch and its metrics; `network` is `trainable`, maybe wrapped."""

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Change gradients between clipping and the optimizer's step."""

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Update what the optimizer does not, such as the teacher; nothing where `skip_update`."""

    def state_dict(self) -> dict[str, Any]:
        """Everything beyond `trainable` and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""


@dataclass
class TrainState:
    """A run on one rank.

    Args:
        method: what is trained.
        network: `method.trainable`, wrapped in DDP where there are several ranks.
        optimizer: over the parameters of `method.trainable`.
        hparams: schedules; at least lr and weight_decay of a global step.
        prepare: last changes to a micro-batch, on the training device.
        device: where the networks are.
        precision: dtype of autocast; float32 switches it off.
        seed: seed of dropout and stochastic depth.
        rank: this rank.
        accumulation: micro-batches in a step.
        clip_grad: norm at which each parameter's gradient is clipped; None does not clip.
        max_bad_records: damaged records after which the run stops.
        skipped: a line for each damaged record met so far; those of other ranks come with reports.
    """

    method: TrainTask
    network: nn.Module
    optimizer: RowAdamW
    hparams: Callable[[int], dict[str, float]]
    prepare: Callable[[TensorBatch], TensorBatch]
    device: torch.device
    precision: torch.dtype
    seed: int
    rank: int
    accumulation: int
    clip_grad: float | None
    max_bad_records: int
    skipped: set[str] = field(default_factory=set)
    guard: NonFiniteGuard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.method.trainable, self.device, self.rank)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the networks and the optimizer: a whole copy on rank 0's CPU.

        A collective operation. What it returns on other ranks is of no use.
        """
        model, optimizer = gather_state(self.method.trainable, self.optimizer)
        method = self.method.state_dict()
        return {
            "model": model,
            "method": cpu_copy(method) if is_first() else method,
            "optimizer": optimizer,
            "skipped": sorted(self.skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any], source: str) -> None:
        """Restore this rank's part of rank 0's `state_dict`, on whatever number of ranks.

        Raises:
            CheckpointError: the checkpoint is of another architecture.
        """
        try:
            parts = self.method.trainable, self.optimizer
            load_gathered(*parts, state["model"], state["optimizer"])
            self.method.load_state_dict(state["method"])
            self.skipped.update(state["skipped"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                source,
                found=" ".join(str(error).split())[:500],
                expected="the weights of the networks that the configuration describes",
                fix="resume with the configuration that the run was started with",
            ) from None


def train(
    training: TrainState,
    batches: Iterator[StepBatch],
    meter: Meter,
    *,
    last_step: int,
    report: Callable[[dict[str, Any]], None],
    report_every: int,
    save: Callable[[int], None],
    save_every: int,
    wish: Callable[[], RunRequest] = lambda: RunRequest.NOTHING,
) -> None:
    """Train on `batches` until they end, or until a rank wishes to stop.

    Args:
        training: the run on this rank.
        batches: one for each step, in order.
        meter: averages metrics between reports.
        last_step: number of steps of the whole run; it is always reported and saved.
        report: gets step, epoch, schedules and averaged metrics; called on every rank at once.
        report_every: steps between reports; every checkpoint is reported as well, so that no mean
            covers steps from before a restart.
        save: gets the number of steps done; called on every rank at once.
        save_every: steps between checkpoints.
        wish: what this rank is asked to do out of turn; called after every step.

    Raises:
        NonFinite: a loss or gradient was; the state before that step has been reported and saved.
        TrainingError: `report` wants the run to end; the step it reported has been saved.
    """
    vote = Vote(training.device)
    log: _Log | None = None
    waited_since = time.perf_counter()
    for batch in batches:
        wait_s = time.perf_counter() - waited_since
        if log is None:
            log = _Log(training, meter, report, save, batch.step)
        note_skipped(training, batch)
        hparams = training.hparams(batch.step)
        training.guard.begin(batch, hparams["lr"])
        metrics = train_step(training, batch, hparams)
        meter.add(metrics, wait_s, batch.work_s, training.guard.skip_update)
        done = batch.step + 1
        wished = vote.ask(wish())
        saves = done % save_every == 0 or done == last_step or wished > RunRequest.NOTHING
        if saves or done % report_every == 0:
            log.tell(done, batch.epoch)
        if saves:
            log.keep(done)
        if wished is RunRequest.STOP:
            return
        waited_since = time.perf_counter()


class _Log:
    """What has been reported and saved, up to the end that a report may bring.

    Args:
        training: the run on this rank.
        meter: of its metrics.
        report: gets a report.
        save: gets the number of steps done.
        first_step: where the run continues.
    """

    def __init__(
        self,
        training: TrainState,
        meter: Meter,
        report: Callable[[dict[str, Any]], None],
        save: Callable[[int], None],
        first_step: int,
    ) -> None:
        self._training, self._meter, self._report, self._save = training, meter, report, save
        self._reported = self._saved = first_step

    def tell(self, done: int, epoch: int) -> None:
        """Report the steps up to `done`; if the run ends with that, save first.

        Raises:
            NonFinite, TrainingError: see `train`.
        """
        found = self._training.guard.look()
        end: NonFinite | TrainingError | None = found
        if found is not None:
            # The state is that before the step found: nothing has moved it since.
            done, epoch = found.step, found.epoch_before
        try:
            if done > self._reported:
                self._send(done, epoch)
        except TrainingError as error:
            end = end or error
        if end is not None:
            self.keep(done)
            raise end

    def _send(self, done: int, epoch: int) -> None:
        means = self._meter.report(done - self._reported)
        self._reported = done
        self._report({"step": done, "epoch": epoch, **self._training.hparams(done - 1), **means})

    def keep(self, done: int) -> None:
        """Save, unless that has been done."""
        if done > self._saved:
            self._save(done)
            self._saved = done


def train_step(
    training: TrainState, batch: StepBatch, hparams: Mapping[str, float]
) -> dict[str, Tensor]:
    """One optimizer step.

    Returns:
        The metrics of its micro-batches, averaged, and the largest gradient norm; 0-d tensors that
        nobody has waited for. From the first step with a loss or gradient that is not finite on,
        nothing moves any more (`training.guard`).
    """
    # Dropout depends on (seed, step, rank) alone, so a resumed run needs no generator's state.
    torch.manual_seed(step_seed(training.seed, batch.step, training.rank))
    set_hyperparameters(training.optimizer, hparams["lr"], hparams["weight_decay"])
    training.method.begin_step(batch.step)
    micro_batches = split(batch, training.accumulation)
    sums: dict[str, Tensor] = {}
    total = torch.zeros((), device=training.device)
    for index, columns in enumerate(micro_batches):
        inputs = training.prepare(to_device(columns, training.device))
        is_last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else _no_sync(training.network):
            with torch.autocast(
                training.device.type,
                training.precision,
                enabled=training.precision != torch.float32,
            ):
                loss, metrics = training.method.loss(training.network, inputs, hparams)
            (loss / training.accumulation).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach() / training.accumulation
        for name, value in metrics.items():
            part = value.detach() / training.accumulation
            sums[name] = sums[name] + part if name in sums else part
    parameters = list(training.method.trainable.parameters())
    if training.clip_grad is None:
        norms = gradient_norms(parameters)
    else:
        norms = clip_each_(parameters, training.clip_grad)
    if len(norms):
        sums["gradient_norm_max"] = norms.max()
    training.guard.judge(batch.step, total, norms)
    training.method.before_optimizer(batch.epoch, hparams)
    training.optimizer.skip_update = training.guard.skip_update
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.method.finish_step(hparams, training.guard.skip_update)
    return sums


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout: different for every (seed, step, rank)."""
    return int(np.random.SeedSequence([_STEP_STREAM, seed, step, rank]).generate_state(1)[0])


def split(batch: StepBatch, parts: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The micro-batches of a step, in row order."""
    rows = len(next(iter(batch.columns.values())))
    assert rows % parts == 0, f"{rows} rows in {parts} micro-batches"
    size = rows // parts
    return [
        {name: column[start : start + size] for name, column in batch.columns.items()}
        for start in range(0, rows, size)
    ]


def to_device(columns: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> TensorBatch:
    """Columns as tensors on the training device; copies to a GPU do not wait for it."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in columns.items()}
    if device.type == "cpu":
        return tensors
    return {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}


def note_skipped(training: TrainState, batch: StepBatch) -> None:
    """Name newly met damaged records.

    Raises:
        DataError: there are more than the run may skip.
    """
    training.skipped.update(batch.skipped)
    if len(training.skipped) > training.max_bad_records:
        shown = sorted(training.skipped)[:10]
        raise DataError(
            "damaged records",
            found="\n    ".join([f"{len(training.skipped)} so far:", *shown]),
            expected=f"at most {training.max_bad_records} (data.max_bad_records)",
            fix="repair or replace the files named, or raise data.max_bad_records",
        )


def _no_sync(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep DDP from reducing gradients before the last micro-batch."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()
