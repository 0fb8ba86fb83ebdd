"""Detects the first step whose loss or gradients are not finite, without a host sync per step.

The result stays on the device as `skip_update`, 0 or 1, which optimizer, teacher and center read:
from the bad step on, no update is applied. The host reads it only at reports and checkpoints, some steps later, and
finds the state as it was before the bad step. The loop all-reduces `is_bad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.training.input_pipeline import StepBatch


@dataclass(frozen=True)
class RankReport:
    """One rank's view of a non-finite step.

    Args:
        rank: the rank.
        loss: its own loss, over its own records.
        parameters: names of those whose gradient was not finite, after the all-reduce.
        shards: number of each record's file, int64 [B].
        keys: of its records, int64 [B].
    """

    rank: int
    loss: float
    parameters: list[str]
    shards: NDArray[np.int64]
    keys: NDArray[np.int64]


@dataclass(eq=False)
class NonFinite(Exception):
    """A step had a loss or gradient that was not finite.

    Args:
        step: its number, from 0, hence the steps that were done before.
        epoch_before: of the step before.
        learning_rate: of the step.
        num_parameters: gradients that were checked.
        ranks: one report from each rank, in order.
    """

    step: int
    epoch_before: int
    learning_rate: float
    num_parameters: int
    ranks: list[RankReport]


class _StepRecords(NamedTuple):
    """What identifies a step's input, kept on the host until the step is known to be finite."""

    epoch: int
    learning_rate: float
    shards: NDArray[np.int64]
    keys: NDArray[np.int64]


class NonFiniteGuard:
    """Checks the steps of one rank; all ranks must call it in the same order.

    Args:
        trainable: what the optimizer trains; its buffers, which a forward may change, are kept.
        device: where it is.
        rank: this rank.
    """

    def __init__(self, trainable: nn.Module, device: torch.device, rank: int) -> None:
        self._trainable, self._rank = trainable, rank
        self.skip_update = torch.zeros((), device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._norms: Tensor | None = None
        self._names: list[str] = []
        self._pending: dict[int, _StepRecords] = {}
        self._buffers: list[Tensor] = []

    def begin(self, batch: StepBatch, learning_rate: float) -> None:
        """Keep a step's records, and the buffers as they are before its forward."""
        nothing = np.empty(0, dtype=np.int64)
        shards, keys = (batch.columns.get(name, nothing) for name in ("shard", "key"))
        self._pending[batch.step] = _StepRecords(batch.epoch, learning_rate, shards, keys)
        now = [torch.cat([each.detach().reshape(-1) for each in group]) for group in self._groups()]
        if self._buffers:
            now = [torch.where(self.skip_update > 0, old, new) for old, new in zip(self._buffers, now, strict=True)]
        self._buffers = now

    def update(self, step: int, is_bad: Tensor, loss: Tensor, norms: Tensor) -> None:
        """Set `skip_update` if any rank met a non-finite value.

        Args:
            step: global step.
            is_bad: whether any rank did, float32 0-d: 0 or 1.
            loss: of this rank's records, 0-d.
            norms: of the gradients before clipping, one for each parameter that has one.
        """
        if self._norms is None or self._norms.shape != norms.shape:
            self._norms = torch.zeros_like(norms)
            named = self._trainable.named_parameters()
            self._names = [name for name, each in named if each.grad is not None]
        is_first = (is_bad > 0) & (self.skip_update == 0)
        self._step = torch.where(is_first, step, self._step)
        self._loss = torch.where(is_first, loss.to(self._loss.dtype), self._loss)
        self._norms = torch.where(is_first, norms, self._norms)
        self.skip_update = torch.maximum(self.skip_update, is_bad)

    def find_nonfinite(self) -> NonFinite | None:
        """Return the first non-finite step, None if there was none; waits for the device.

        If there was one, this is a collective operation, and it restores the trained network's buffers to their values
        before that step.
        """
        step = int(self._step)
        records, self._pending = self._pending, dict([*self._pending.items()][-1:])
        if step < 0:
            return None
        self._restore_buffers()
        assert self._norms is not None
        bad = (~self._norms.isfinite()).tolist()
        # The last step of the call before is kept: only the first step has none before it.
        now, before = records[step], records.get(step - 1, records[step])
        mine = RankReport(
            self._rank,
            float(self._loss),
            [name for name, is_bad in zip(self._names, bad, strict=True) if is_bad],
            now.shards,
            now.keys,
        )
        ranks: list[Any] = [mine]
        if dist.is_initialized():
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        return NonFinite(step, before.epoch, now.learning_rate, len(self._names), ranks)

    def _groups(self) -> list[list[Tensor]]:
        """Return the buffers grouped by dtype."""
        buffers = sorted(self._trainable.buffers(), key=lambda buffer: str(buffer.dtype))
        return [list(group) for _, group in groupby(buffers, key=lambda buffer: buffer.dtype)]

    def _restore_buffers(self) -> None:
        for group, flat in zip(self._groups(), self._buffers, strict=True):
            parts = torch.split(flat, [buffer.numel() for buffer in group])
            for buffer, part in zip(group, parts, strict=True):
                buffer.copy_(part.view_as(buffer))
