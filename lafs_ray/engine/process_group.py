"""PyTorch's process group between training workers, set up from a controller that imports no torch.

Ray Train's `TorchConfig` makes the same calls in the workers; but its module imports torch, which would cost the
controller, on which the workers wait, seconds of a core.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

_SHUTDOWN_S = 30.0


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc] # Ray ships no types
    """The process group of a run.

    Args:
        backend: gloo, or cpu:gloo,cuda:nccl.
        timeout_s: of its collective operations.
    """

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[_Backend]:
        """What the controller calls."""
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """Around the training function: sets the GPU."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    @property
    def framework(self) -> Any:
        """For Ray's own records."""
        return TrainingFramework.TORCH


class _Backend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, config: ProcessGroup) -> None:
        """Set the group up; called before the training function."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        ranks = range(len(worker_group))
        arguments = (config.backend, len(ranks), config.timeout_s, address, port)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *arguments) for rank in ranks])

    def on_shutdown(self, worker_group: Any, _: ProcessGroup) -> None:
        """End it."""
        futures = worker_group.execute_async(_leave, len(worker_group) > 1)
        # Those of a rank that hangs never come.
        ray.wait(futures, num_returns=len(futures), timeout=_SHUTDOWN_S)


def _join(rank: int, backend: str, world: int, timeout_s: int, address: str, port: int) -> None:
    """Join the group; runs in a worker."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, world, "env://", timeout_s)


def _leave(destroy: bool) -> None:
    """Leave the group; runs in a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy)
