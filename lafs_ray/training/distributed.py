"""Collective operations of the training loop, beside those of DDP and Partial FC.

Ranks must save at the same step, but a signal or a preemption notice reaches one of them at any time, so requests are
reduced in every step. So are failures: a rank that left alone would leave the others waiting for compute.timeout_s.
"""

from __future__ import annotations

import pickle
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.errors import find_user_error
from lafs_ray.training.run_request import RunRequest


class RequestReducer:
    """The one small all-reduce of each step, where several ranks train.

    Args:
        device: where the ranks' collective operations work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def all_reduce_request(self, request: RunRequest, is_bad: Tensor) -> tuple[Tensor, RunRequest]:
        """Reduce this rank's request, and whether its step is non-finite, to the ranks' maximum.

        Args:
            request: of this rank.
            is_bad: float32 0-d on the device, 0 or 1.

        Returns:
            Whether any rank's step is non-finite, as `is_bad`; and the highest request of all ranks. On several GPUs it
            is that of the step before, so that the host never waits for a GPU that has no further work queued.
        """
        mine = torch.full((), int(request), dtype=torch.float32, device=self._device)
        pair = torch.stack((is_bad, mine))
        dist.all_reduce(pair, dist.ReduceOp.MAX)
        if self._device.type != "cuda":
            return pair[0], RunRequest(int(pair[1]))
        result = torch.empty(1, dtype=pair.dtype, pin_memory=True)
        result.copy_(pair[1:], non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        before, self._before = self._before, (result, copied)
        if before is None:
            return pair[0], RunRequest.NOTHING
        before[1].synchronize()
        return pair[0], RunRequest(int(before[0]))


class SharedFailure(Exception):
    """What one of several ranks met, raised on all of them at the same step.

    Args:
        error: of the first rank that failed; it is the exception's `__cause__` as well.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = self.__cause__ = error


def share_failure(error: Exception | None) -> Exception | None:
    """Return the failure of the first rank that has one, on every rank; a collective operation on CPUs.

    Args:
        error: of this rank, None if there is none.

    Returns:
        None if no rank failed. On a single rank its own error, on several a `SharedFailure`.
    """
    if count_ranks() == 1:
        return error
    failed = torch.full((), float(error is not None))
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if not failed:
        return None
    gathered: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, None if error is None else _packed(error, dist.get_rank()))
    first = next(one for one in gathered if one is not None)
    return SharedFailure(
        error if error is not None and gathered.index(first) == dist.get_rank() else pickle.loads(first)
    )


def _packed(error: Exception, rank: int) -> bytes:
    """Return an exception for other ranks: a user's error as it is, others as text."""
    user_error = find_user_error(error)
    return pickle.dumps(user_error or RuntimeError(f"rank {rank} failed: {type(error).__name__}: {error}"))


def gather_lines(lines: set[str]) -> set[str]:
    """Return the lines of all ranks; a collective operation."""
    if not dist.is_initialized():
        return lines
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, lines)
    return set().union(*gathered)


def broadcast_from_first(value: int) -> int:
    """Return rank 0's value on every rank; a collective operation."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return int(box[0])


def reduce_gradients(
    network: nn.Module, device: torch.device, precision: Literal["float32", "bfloat16"]
) -> DistributedDataParallel:
    """Wrap a network in DDP, which averages the ranks' gradients while the backward pass goes on.

    A gradient is a part of its bucket, which saves a copy of all gradients. All parameters have one in every step, so
    none is searched for, and a static graph would save nothing.

    Args:
        network: that is trained.
        device: of the network.
        precision: in which gradients are sent and added; they stay float32 otherwise.
    """
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, devices, gradient_as_bucket_view=True)
    if precision == "bfloat16":
        # DDP reads the annotations of a hook, which are text here; a lambda has none.
        wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_bfloat16(bucket))
    return wrapped


def _mean_in_bfloat16(bucket: Any) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over the ranks; torch's own hook of this kind refuses gloo."""
    gradients = bucket.buffer()
    sent = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    work = dist.all_reduce(sent, async_op=True)
    assert work is not None, "all ranks are in the group"
    mean: torch.futures.Future[Tensor] = work.get_future().then(lambda _: gradients.copy_(sent))
    return mean


def count_ranks() -> int:
    """Return the number of ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is rank 0, which alone writes and logs."""
    return not dist.is_initialized() or dist.get_rank() == 0
