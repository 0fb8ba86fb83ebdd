"""Run functions on several gloo processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.forked import start_method

LIMIT_S = 240

Stage = tuple[int, Callable[..., Any], tuple[Any, ...]]
"""A number of ranks, a function of a module's top level, and what it gets after (rank, ranks)."""


def _main(rank: int, folder: str, stages: tuple[Stage, ...]) -> None:
    torch.set_num_threads(1)
    kept: list[Any] = []
    for number, (num_ranks, function, arguments) in enumerate(stages):
        if rank >= num_ranks:
            continue
        store = f"file://{folder}/store-{number}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks)
        result = function(rank, num_ranks, *arguments)
        torch.save(result, Path(folder, f"{number}-{rank}.pt"))
        # The reference keeps the group's destructor from running: under torch 2.6 it holds the GIL while it joins a
        # gloo thread, which may be waiting for the GIL to free a tensor.
        kept.append(dist.group.WORLD)
        dist.destroy_process_group()
    os._exit(0)


def on_ranks(folder: Path, *stages: Stage) -> list[list[Any]]:
    """What the functions return on each rank, tensors and plain values.

    The stages follow each other in the same processes, since starting one costs seconds.

    Args:
        folder: an empty one, for the ranks to meet in.
        stages: what to run on how many ranks.
    """
    count = max(num_ranks for num_ranks, _, _ in stages)
    context = mp.start_processes(_main, (str(folder), stages), nprocs=count, join=False, start_method=start_method())
    assert context is not None
    deadline = time.monotonic() + LIMIT_S
    try:
        # join returns after each process that ends, true once all have.
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, f"{count} ranks took over {LIMIT_S} s"
    finally:
        for process in context.processes:
            process.kill()
    return [
        [torch.load(folder / f"{number}-{rank}.pt") for rank in range(num_ranks)]
        for number, (num_ranks, _, _) in enumerate(stages)
    ]
