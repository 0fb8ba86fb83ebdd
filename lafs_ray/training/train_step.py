"""One step of training, and the state that it changes; on one rank, independent of faces and of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lafs_ray.errors import CheckpointError, DataError
from lafs_ray.methods.optim import RowAdamW, clip_each_, gradient_norms, set_hyperparameters
from lafs_ray.training.checkpoint.sharded_state import cpu_copy, gather_state, load_gathered
from lafs_ray.training.distributed import RequestReducer, count_ranks, is_first
from lafs_ray.training.input_pipeline import StepBatch, split
from lafs_ray.training.monitoring.nonfinite_guard import NonFiniteGuard
from lafs_ray.training.run_request import RunRequest

_STEP_STREAM = 0x73746570
# What names the records, for `NonFiniteGuard`: no loss takes it.
_HOST_COLUMNS = ("shard", "key")

TensorBatch = dict[str, Tensor]
DeviceTransform = Callable[[TensorBatch], TensorBatch]


def unchanged(batch: TensorBatch) -> TensorBatch:
    """Return a micro-batch as it is: the transform of runs whose crops are made on CPUs."""
    return batch


def no_request() -> RunRequest:
    """Request nothing: for a run that nothing can request to save or stop."""
    return RunRequest.NOTHING


class TrainTask(Protocol):
    """The interface of LAFS pretraining and of supervised training to the loop."""

    @property
    def trainable(self) -> nn.Module:
        """What the optimizer trains and DDP wraps."""

    def begin_step(self, step: int, *, reports: bool) -> None:
        """Reseed what is sampled per global step; metrics that only a report needs may wait for one that `reports`."""

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch and its metrics; `network` may wrap `trainable`."""

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Change gradients between clipping and the optimizer's step."""

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Update what the optimizer does not, such as the teacher; nothing where `skip_update`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state beyond `trainable` and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""


@dataclass
class TrainState:
    """A run on one rank.

    Args:
        task: what is trained.
        network: `task.trainable`, wrapped in DDP where there are several ranks.
        optimizer: over the parameters of `task.trainable`.
        hparams: schedules: a global step to lr, weight_decay and those of the task.
        device: where the networks are.
        precision: dtype of autocast; float32 disables it.
        seed: seed of dropout and stochastic depth.
        rank: this rank.
        accumulation: micro-batches in a step.
        clip_grad: norm at which each parameter's gradient is clipped; None does not clip.
        max_bad_records: damaged records after which the run stops.
        transform: what crops.device=cuda does to a micro-batch on the training device.
        skipped: a line for each damaged record met so far; those of other ranks come with reports.
        fingerprints: `crop_fingerprint` of the machines that made crops of this run, likewise.
        request: the highest request of all ranks; on several GPUs, that of the step before.
    """

    task: TrainTask
    network: nn.Module
    optimizer: RowAdamW
    hparams: Callable[[int], dict[str, float]]
    device: torch.device
    precision: torch.dtype
    seed: int
    rank: int
    accumulation: int
    clip_grad: float | None
    max_bad_records: int
    transform: DeviceTransform = unchanged
    skipped: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    request: RunRequest = RunRequest.NOTHING

    def __post_init__(self) -> None:
        self.guard = NonFiniteGuard(self.task.trainable, self.device, self.rank)
        self.reducer = RequestReducer(self.device) if count_ranks() > 1 else None

    def state_dict(self) -> dict[str, Any]:
        """Gather the networks and the optimizer for saving, on rank 0's CPU.

        A collective operation; only rank 0's result is complete.
        """
        model, optimizer = gather_state(self.task.trainable, self.optimizer)
        task = self.task.state_dict()
        return {
            "model": model,
            "method": cpu_copy(task) if is_first() else task,
            "optimizer": optimizer,
            "skipped": sorted(self.skipped),
            "fingerprints": sorted(self.fingerprints),
        }

    def load_state_dict(self, state: Mapping[str, Any], source: str) -> None:
        """Restore this rank's shard of rank 0's `state_dict`, on any number of ranks.

        Raises:
            CheckpointError: the checkpoint has another architecture.
        """
        try:
            parts = self.task.trainable, self.optimizer
            load_gathered(*parts, state["model"], state["optimizer"])
            self.task.load_state_dict(state["method"])
            self.skipped.update(state["skipped"])
            self.fingerprints.update(state["fingerprints"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                source,
                found=" ".join(str(error).split())[:500],
                expected="the weights of the networks that the configuration describes",
                fix="resume with the configuration that the run was started with",
            ) from None


def train_step(
    training: TrainState,
    batch: StepBatch,
    hparams: Mapping[str, float],
    poll_request: Callable[[], RunRequest] = no_request,
    *,
    reports: bool = True,
) -> dict[str, Tensor]:
    """Make one optimizer step and set `training.request`.

    Args:
        training: the run on this rank.
        batch: of the step.
        hparams: of the step.
        poll_request: returns this rank's request.
        reports: whether a report follows.

    Returns:
        The metrics of its micro-batches, averaged, and the largest gradient norm: 0-d tensors on the device, without a
        host sync. From the first step with a non-finite loss or gradient on, no update is made (`training.guard`).
    """
    task, device = training.task, training.device
    # Dropout depends on (seed, step, rank) alone, so a resumed run needs no generator's state.
    torch.manual_seed(step_seed(training.seed, batch.step, training.rank))
    set_hyperparameters(training.optimizer, hparams["lr"], hparams["weight_decay"])
    task.begin_step(batch.step, reports=reports)
    training.guard.begin(batch, hparams["lr"])
    micro_batches = split(batch, training.accumulation)
    sums: dict[str, Tensor] = {}
    total = torch.zeros((), device=device)
    for index, columns in enumerate(micro_batches):
        inputs = training.transform(to_device(columns, device))
        with contextlib.ExitStack() as stack:
            is_last = index == len(micro_batches) - 1
            if not is_last and isinstance(training.network, nn.parallel.DistributedDataParallel):
                # DDP reduces gradients after the last micro-batch.
                stack.enter_context(training.network.no_sync())
            uses_autocast = training.precision != torch.float32
            with torch.autocast(device.type, training.precision, enabled=uses_autocast):
                loss, metrics = task.loss(training.network, inputs, hparams)
            (loss / training.accumulation).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach() / training.accumulation
        for name, value in metrics.items():
            part = value.detach() / training.accumulation
            sums[name] = sums[name] + part if name in sums else part
    parameters = list(task.trainable.parameters())
    norms = gradient_norms(parameters) if training.clip_grad is None else clip_each_(parameters, training.clip_grad)
    if len(norms):
        sums["gradient_norm_max"] = norms.max()
    is_bad = (~(total.isfinite() & norms.isfinite().all())).float()
    training.request = poll_request()
    if training.reducer is not None:
        is_bad, training.request = training.reducer.all_reduce_request(training.request, is_bad)
    training.guard.update(batch.step, is_bad, total, norms)
    task.before_optimizer(batch.epoch, hparams)
    training.optimizer.skip_update = training.guard.skip_update
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    task.finish_step(hparams, training.guard.skip_update)
    return sums


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout: another one for every (seed, step, rank)."""
    return int(np.random.SeedSequence([_STEP_STREAM, seed, step, rank]).generate_state(1)[0])


def to_device(columns: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> TensorBatch:
    """Return what a loss takes of columns as tensors on the training device; copies to a GPU are asynchronous."""
    given = {name: column for name, column in columns.items() if name not in _HOST_COLUMNS}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in given.items()}
    if device.type == "cpu":
        return tensors
    return {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}


def count_skipped(training: TrainState, batch: StepBatch) -> None:
    """Add a batch's damaged records to those of the run.

    Raises:
        DataError: there are more than `max_bad_records`.
    """
    skipped = training.skipped.union(batch.skipped)
    if len(skipped) > training.max_bad_records:
        shown = sorted(skipped)[:10]
        raise DataError(
            "damaged records",
            found="\n    ".join([f"{len(skipped)} so far:", *shown]),
            expected=f"at most {training.max_bad_records} (data.max_bad_records)",
            fix="repair or replace the files named, or raise data.max_bad_records",
        )
    training.skipped = skipped
