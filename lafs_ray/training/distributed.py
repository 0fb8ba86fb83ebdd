"""The ranks agree upon a wish.

Ranks must save at the same step, but a signal or a notice reaches one of them at any time. So they
vote after every step. On GPUs they hear the result a step later, so that no GPU's queue of work
runs empty for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lafs_ray.training.run_request import RunRequest


class Vote:
    """The ranks' agreement.

    Args:
        device: where the ranks' collective operations work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def ask(self, wish: RunRequest) -> RunRequest:
        """The highest wish of all ranks; on several GPUs, that of the step before.

        A collective operation.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return wish
        votes = torch.full((1,), int(wish), dtype=torch.int32, device=self._device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        if self._device.type != "cuda":
            return RunRequest(int(votes))
        # Only the GPU's stream waits for the others; this process reads the result a step later.
        result = torch.empty(1, dtype=votes.dtype, pin_memory=True)
        result.copy_(votes, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        before, self._before = self._before, (result, copied)
        if before is None:
            return RunRequest.NOTHING
        before[1].synchronize()
        return RunRequest(int(before[0]))


def share_lines(lines: set[str]) -> set[str]:
    """The lines of all ranks; a collective operation."""
    if not dist.is_initialized():
        return lines
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, lines)
    return set().union(*gathered)


def from_first_rank(value: int) -> int:
    """Rank 0's value on every rank; a collective operation."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return int(box[0])


def count_ranks() -> int:
    """Ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that writes and speaks for all."""
    return not dist.is_initialized() or dist.get_rank() == 0
