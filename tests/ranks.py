"""Run a function on several gloo processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_S = 120


def _main(
    rank: int, function: Callable[..., Any], num_ranks: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{num_ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks)
    try:
        torch.save(function(rank, num_ranks, *arguments), Path(folder, f"{num_ranks}-{rank}.pt"))
    finally:
        dist.destroy_process_group()


def on_ranks(
    function: Callable[..., Any], num_ranks: int, folder: Path, *arguments: Any
) -> list[Any]:
    """What `function(rank, num_ranks, *arguments)` returns on each rank.

    Args:
        function: of a module's top level; returns tensors and plain values.
        num_ranks: processes.
        folder: an empty one, for the ranks to meet in.
        arguments: for the function.
    """
    context = mp.spawn(
        _main, (function, num_ranks, str(folder), arguments), nprocs=num_ranks, join=False
    )
    assert context is not None
    deadline = time.monotonic() + LIMIT_S
    try:
        # join returns after each process that ends, true once all have.
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, f"{num_ranks} ranks took over {LIMIT_S} s"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{num_ranks}-{rank}.pt") for rank in range(num_ranks)]
