"""State of a run with sharded class centers: gathered for saving, resharded on load.

A checkpoint holds what a single rank would have saved, whatever the number of ranks. So a run can be resumed on another
number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.training.distributed import count_ranks, is_first

_Leaf = TypeVar("_Leaf")


def cpu_copy(state: Any) -> Any:
    """Return the same nest of dicts, lists and values with copies of the tensors on the CPU.

    Those of a GPU are copied to pinned memory one behind the other, and waited for once. torch keeps that memory for
    the next copy when this one is no longer used.
    """
    is_on_gpu = False

    def copy(tensor: Tensor) -> Tensor:
        nonlocal is_on_gpu
        tensor = tensor.detach()
        if not tensor.is_cuda:
            return tensor.to("cpu", copy=True)
        is_on_gpu = True
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    copied = _map(state, Tensor, copy)
    if is_on_gpu:
        torch.cuda.synchronize()
    return copied


def _map(state: Any, kind: type[_Leaf], change: Callable[[_Leaf], Any]) -> Any:
    """Return the same nest of dicts, lists and values with each value of a kind changed, in order."""
    if isinstance(state, kind):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _map(value, kind, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_map(value, kind, change) for value in state)
    return state


@dataclass(frozen=True)
class _Sent:
    """Stands for a tensor that follows."""

    shape: torch.Size
    dtype: torch.dtype


def broadcast_state(state: Any) -> Any:
    """Return rank 0's nest of dicts, lists, values and CPU tensors on every rank; a collective operation on CPUs.

    Args:
        state: of rank 0; not used on others.
    """
    if count_ranks() == 1:
        return state
    tensors: list[Tensor] = []

    def announced(tensor: Tensor) -> _Sent:
        tensors.append(tensor)
        return _Sent(tensor.shape, tensor.dtype)

    box = [_map(state, Tensor, announced) if is_first() else None]
    dist.broadcast_object_list(box)
    if not is_first():
        return _map(box[0], _Sent, lambda sent: _broadcast_bytes(torch.empty(sent.shape, dtype=sent.dtype)))
    for tensor in tensors:
        _broadcast_bytes(tensor.contiguous())
    return state


def _broadcast_bytes(tensor: Tensor) -> Tensor:
    if tensor.numel():
        dist.broadcast(tensor.detach().reshape(-1).view(torch.uint8), 0)
    return tensor


def gather_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return states of networks and optimizer, copied to the CPU; a collective operation.

    Rank 0 receives the centers and each of their moments one shard after the other, so that it holds one full copy
    besides its own state.

    Returns:
        `module.state_dict()` and `optimizer.state_dict()` with the rows of all ranks. On ranks other than 0 the live
        state, with None for what is sharded.
    """
    model, optim = module.state_dict(), optimizer.state_dict()
    if is_first():
        model, optim = cpu_copy(model), cpu_copy(optim)
    numbers = _numbers(optimizer)
    for name, head in _sharded(module):
        number = numbers[head.weight]
        model[name] = head.gather_rows(model[name])
        optim["state"][number] = _each_by_class(optim["state"].get(number, {}), head.gather_rows)
    return model, optim


def load_gathered(
    module: nn.Module, optimizer: torch.optim.Optimizer, model: Mapping[str, Any], optim: Mapping[str, Any]
) -> None:
    """Load this rank's shard of what `gather_state` returned on rank 0.

    Raises:
        RuntimeError, ValueError, KeyError: the state is of another architecture.
    """
    model, states = dict(model), dict(optim["state"])
    numbers = _numbers(optimizer)
    for name, head in _sharded(module):
        number = numbers[head.weight]
        found, expected = list(model[name].shape), [head.num_classes, *head.weight.shape[1:]]
        if found != expected:
            raise ValueError(f"{name}: the checkpoint has {found}, this network {expected}")
        model[name] = head.own_rows(model[name])
        if number in states:
            states[number] = _each_by_class(states[number], head.own_rows)
    module.load_state_dict(model)
    optimizer.load_state_dict({**optim, "state": states})


def _sharded(module: nn.Module) -> Iterator[tuple[str, PartialFC]]:
    """Yield the name of each sharded parameter, and its head."""
    for name, head in module.named_modules():
        if isinstance(head, PartialFC):
            yield f"{name}.weight", head


def _numbers(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, int]:
    """Return the index of each parameter in the optimizer's state."""
    groups = optimizer.param_groups
    return {each: n for n, each in enumerate(each for group in groups for each in group["params"])}


def _each_by_class(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor | None]:
    """Apply `change` to per-class optimizer state; AdamW's step count may be one for all."""
    return {key: change(value) if value.ndim else value for key, value in state.items()}
