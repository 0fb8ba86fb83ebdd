"""What the training step achieves: images, counted FLOP, the device's peak, memory."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.our_step import Ours
from benchmarks.pack import peak_mb
from benchmarks.plain_step import BACKWARD, BEFORE, INPUT, STEP, STUDENT, TEACHER, VIEWS, Case, Plain, PlainNetwork
from lafs_ray.models.fvit import FViTSize

TOTAL = "step, from tokens"
SUMS = {TOTAL: STEP, "the same after landmarks, patches": (*BEFORE, *STEP)}

Side = Ours | Plain
Build = Callable[[Case, float], Side]


def count_flops(case: Case) -> dict[str, float]:
    """FLOP an image: products of matrices in the forward passes, a multiply-add being two.

    Counted on the plain network (the counter does not know the CPU's fused attention), on the meta device, which
    computes nothing. The backward pass is taken as twice the student's forward. Ours computes less for the same: of the
    last block only the class token, and no branch of a dropped sample. Norms, softmax, activations, loss and
    optimizer are left out, and so is what activation checkpointing computes a second time.
    """
    with torch.device("meta"), torch.no_grad():
        network = PlainNetwork(replace(case, device=torch.device("meta")).network())
        views = [torch.empty(1, count, 192) for count in [VIEWS.num_landmarks] * 2]
        views += [torch.empty(1, VIEWS.local_tokens, 192)] * 8
        flops = []
        for passed in (views[:2], views):
            with FlopCounterMode(display=False) as counter:
                network(passed)
            flops.append(counter.get_total_flops())
    teacher, student = flops
    return {TEACHER: teacher, STUDENT: student, BACKWARD: 2 * student, TOTAL: teacher + 3 * student}


def matmul_peak(case: Case, precision: torch.dtype) -> float:
    """FLOP/s of a large product of square matrices on this run's threads.

    Median of seven, or of what ten seconds allow: a CPU without bfloat16 of its own is slow.
    """
    side = 8192 if case.device.type == "cuda" else 2048
    shape = (side, side)
    one, other = (torch.randn(shape, device=case.device, dtype=precision) for _ in range(2))
    watch, times = case.stopwatch(), []
    while len(times) < 7 and sum(times) < 10:
        watch.start()
        torch.mm(one, other)
        watch.mark(INPUT)
        times.append(watch.seconds[INPUT])
    return 2 * side**3 / statistics.median(times)


def peak_bytes(build: Build, case: Case, clip: float) -> float:
    """Most memory that two steps take above student and teacher: all else that training needs.

    That is activations, gradients, AdamW's moments and what passes. CUDA: the allocator's own count. CPU: growth of the
    peak resident size of a process of its own, in which a tiny step has run before, so that what torch loads at first
    use does not count.
    """
    if case.device.type == "cuda":
        side = build(case, clip)
        torch.cuda.synchronize(case.device)
        torch.cuda.reset_peak_memory_stats(case.device)
        before = torch.cuda.memory_allocated(case.device)
        for number in range(2):
            side.step(number)
        return torch.cuda.max_memory_allocated(case.device) - before
    small = replace(case, size=FViTSize(8, 1, 1, 8, 8), num_prototypes=8, batch=1, hidden_dim=8)
    imports = [
        "import json, torch",
        f"from benchmarks.step_figures import case_of, {build.__name__}",
        "case, small = (case_of(text) for text in sys.argv[1:3])",
        "torch.set_num_threads(int(sys.argv[3]))",
        f"side = {build.__name__}(small, 3.0)",
        "losses = [side.step(number) for number in range(2)]",
        f"side = {build.__name__}(case, {clip})",
    ]
    work = ["losses = [side.step(number) for number in range(2)]"]
    threads = str(torch.get_num_threads())
    return peak_mb(imports, work, as_text(case), as_text(small), threads)[0] * 2**20


def as_text(case: Case) -> str:
    """A case as an argument of a process."""
    return json.dumps(asdict(case) | {"device": str(case.device), "precision": precision_name(case)})


def case_of(text: str) -> Case:
    """The case that `as_text` wrote."""
    values = json.loads(text)
    size, device = FViTSize(**values.pop("size")), torch.device(values.pop("device"))
    precision = getattr(torch, values.pop("precision"))
    return Case(**values, size=size, device=device, precision=precision)


def precision_name(case: Case) -> str:
    """The precision's name."""
    return str(case.precision).removeprefix("torch.")


def report(case: Case, medians: dict[str, dict[str, float]], memory: dict[str, float] | None) -> None:
    """Print the times, the ratios, what share of the device's peak they are, and the memory."""
    ours, plain = medians["ours"], medians["plain"]
    print(f"\n{'ms an image':36}{'ours':>10}{'plain':>10}{'plain/ours':>12}")
    for stage in (*BEFORE, *STEP, *SUMS):
        here, there = (side[stage] * 1e3 / case.batch for side in (ours, plain))
        print(f"{stage:36}{here:10.2f}{there:10.2f}{there / here:10.2f} ×")
    for title in SUMS:
        here, there = (case.batch / side[title] for side in (ours, plain))
        print(f"{title}: {here:.2f} images/s, plain {there:.2f}: ratio {here / there:.2f}")
    if memory is not None:
        here, there = (memory[side] / 2**20 for side in ("ours", "plain"))
        ratio = f"ratio {there / here:.2f}"
        print(f"peak memory above the networks: {here:.0f} MiB, plain {there:.0f}: {ratio}")
    peak = matmul_peak(case, case.precision)
    others = {torch.float32} - {case.precision}
    print(f"\n{precision_name(case)} matmul peak {peak / 1e9:.1f} GFLOP/s", end="")
    for kind in others:
        print(f" (float32: {matmul_peak(case, kind) / 1e9:.1f})", end="")
    titles = f"{'ours GFLOP/s':>14}{'of peak':>9}{'plain':>9}{'of peak':>9}"
    print(f"\n{'counted GFLOP an image':46}{titles}")
    for stage, flops in count_flops(case).items():
        print(f"{stage:36}{flops / 1e9:10.2f}", end="")
        for width, side in ((14, ours), (9, plain)):
            achieved = flops * case.batch / side[stage]
            print(f"{achieved / 1e9:{width}.1f}{achieved / peak:9.0%}", end="")
        print()
