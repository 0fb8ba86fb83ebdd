"""Memory and time of Partial FC beside the dense margin softmax.

    python -m benchmarks.partial_fc --classes 100000 1000000 --repeats 3

A step is forward, backward and AdamW of the head alone. The dense side is `MarginSoftmax` and a cross-entropy under
autograd; AdamW is the fused one on both sides, as on a GPU. Each line runs in processes of its own, one thread each,
which share the batch; its memory is the growth of the peak resident size (Linux), of the greatest process. That the
first loss at a rate of 1 is the dense one is checked on the way.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import torch._dynamo  # the optimizer's first step would, in each of the processes forked
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from benchmarks.views import cpu_name
from lafs_ray.methods.optim import RowAdamW
from lafs_ray.models.partial_fc import PartialFC
from tests.models.margin_softmax import MarginSoftmax

# Sums in another order, in float32.
ALLOWED = 1e-5


@dataclass(frozen=True)
class Side:
    """One line of the table."""

    name: str
    sample_rate: float | None
    num_processes: int


SIDES = (
    Side("dense", None, 1),
    Side("Partial FC, r = 1", 1.0, 1),
    Side("Partial FC, r = 0.1", 0.1, 1),
    Side("Partial FC, r = 1, each of 2", 1.0, 2),
    Side("Partial FC, r = 0.1, each of 2", 0.1, 2),
)


@dataclass(frozen=True)
class Case:
    """What all sides compute."""

    num_classes: int
    width: int
    batch: int
    repeats: int


@dataclass(frozen=True)
class Result:
    """What one process found."""

    loss: float
    seconds: float
    peak_bytes: int
    kept_bytes: int


def peak_bytes() -> int:
    """Highest resident size of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def build(side: Side, case: Case, rank: int) -> tuple[PartialFC | MarginSoftmax, Callable[[Tensor, Tensor], Tensor]]:
    """The head, and what makes a loss of embeddings and labels."""
    torch.manual_seed(0)
    if side.sample_rate is None:
        dense = MarginSoftmax(case.width, case.num_classes)
        return dense, lambda rows, labels: F.cross_entropy(dense(rows, labels), labels)
    head = PartialFC(
        case.width, case.num_classes, sample_rate=side.sample_rate, rank=rank, num_ranks=side.num_processes
    )
    return head, lambda rows, labels: head.loss(rows, labels)[0]


def process(rank: int, side: Side, case: Case, folder: str) -> None:
    """What one process runs and writes down."""
    torch.set_num_threads(1)
    count = side.num_processes
    if count > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    # What torch imports and allocates at first use is not the head's.
    run_steps(rank, side, replace(case, num_classes=1000))
    before = peak_bytes()
    losses, seconds, kept = run_steps(rank, side, case)
    result = Result(losses[0], statistics.median(seconds[1:]), peak_bytes() - before, kept)
    torch.save(vars(result), Path(folder, f"{rank}.pt"))
    if count > 1:
        dist.destroy_process_group()


def run_steps(rank: int, side: Side, case: Case) -> tuple[list[float], list[float], int]:
    """Losses and seconds of steps, and bytes of the tensors that the last one kept."""
    count = side.num_processes
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(case.batch, case.width, generator=generator).chunk(count)[rank]
    labels = torch.randint(case.num_classes, (case.batch,), generator=generator).chunk(count)[rank]
    head, loss_of = build(side, case, rank)
    optimizer = RowAdamW(head.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    losses, seconds, kept = [], [], 0
    for step in range(case.repeats + 1):
        if count > 1:
            dist.barrier()
        start = time.perf_counter()
        if isinstance(head, PartialFC):
            head.begin_step(step)
        loss = loss_of(embeddings.clone().requires_grad_(), labels)
        loss.backward()
        kept = tensor_bytes(head, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return losses, seconds, kept


def tensor_bytes(head: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the centers, of their gradient and of the optimizer's state."""
    tensors = [each for state in optimizer.state.values() for each in state.values()]
    for parameter in head.parameters():
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            tensors += [gradient._indices(), gradient._values()]
        else:
            tensors.append(gradient)
        tensors.append(parameter)
    return sum(each.numel() * each.element_size() for each in tensors)


def measure(side: Side, case: Case) -> Result:
    """One side: mean loss, slowest process, most memory of a process."""
    with tempfile.TemporaryDirectory() as folder:
        # Forked, as each of them would import torch for seconds.
        count = side.num_processes
        mp.start_processes(process, (side, case, folder), nprocs=count, start_method="fork")
        ranks = [Result(**torch.load(each)) for each in Path(folder).glob("*.pt")]
    return Result(
        statistics.mean(rank.loss for rank in ranks),
        max(rank.seconds for rank in ranks),
        max(rank.peak_bytes for rank in ranks),
        max(rank.kept_bytes for rank in ranks),
    )


def report(case: Case) -> None:
    """Measure and print one table; leave with an error if the sides do not compute the same."""
    print(
        f"\n{case.num_classes} classes × {case.width}, batch {case.batch}\n"
        f"{'':32}{'peak, MiB':>10}{'of dense':>9}{'kept, MiB':>11}{'step, ms':>10}{'of dense':>9}"
    )
    dense = None
    for side in SIDES:
        found = measure(side, case)
        dense = dense or found
        print(
            f"{side.name:32}{found.peak_bytes / 2**20:10.0f}"
            f"{found.peak_bytes / dense.peak_bytes:9.2f}{found.kept_bytes / 2**20:11.0f}"
            f"{found.seconds * 1e3:10.0f}{found.seconds / dense.seconds:9.2f}",
            flush=True,
        )
        # Written so that a NaN fails.
        if side.sample_rate == 1.0 and not abs(found.loss / dense.loss - 1) <= ALLOWED:
            sys.exit(f"{side.name}: loss {found.loss}, dense {dense.loss}")
    print("kept: centers, gradient, optimizer state. First losses at r = 1 equal the dense one")


def main() -> None:
    """Print a table for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{date.today()}  torch {torch.__version__}, Python {platform.python_version()}, "
        f"{cpu_name()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"median of {arguments.repeats}"
    )
    for num_classes in arguments.classes:
        report(Case(num_classes, arguments.width, arguments.batch, arguments.repeats))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
