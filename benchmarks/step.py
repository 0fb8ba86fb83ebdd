"""Time the LAFS training step, stage by stage, beside a plain step of the reference's shape.

    python -m benchmarks.step --size tiny --batch 8 --repeats 5

Ours is `training.train_step.train_step` itself; the plain step is `plain_step.py`. That both compute the same is
checked first, without dropout and in float32. Then they take turns, one round after the other, with the recipe's
dropout, and medians are printed, with images/s, the share of the device's matrix peak and the memory. Tokens are
random, which changes no time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import date

import numpy as np
import torch
from torch import Tensor

from benchmarks.our_step import Ours
from benchmarks.plain_step import VALUES, Case, Plain
from benchmarks.step_figures import SUMS, Side, peak_bytes, precision_name, report
from benchmarks.views import cpu_name
from lafs_ray.models.fvit import FVIT_SIZES

CLIP = 3.0
# A norm that nearly every gradient of the check exceeds, so that clipping is checked as well.
CHECK_CLIP = 0.01
# Sums in another order: some 1e-6 of a number, more after a second step, as weights differ then. AdamW divides a
# gradient by its size, so where it is nearly zero rounding decides the direction of a weight: hence a mean over all
# weights. Half a step of 8 bits is 0.0039 of [-1, 1], to which comes what landmarks apart by 1e-4 px make of noise.
ALLOWED = {
    "landmarks, px": 1e-2,
    "tokens, of [-1, 1]": 0.5 / 127.5 + 1e-3,
    "loss, relative": 1e-5,
    "gradients, of a tensor's largest": 1e-3,
    "student after two steps, mean, of lr": 1e-3,
    "teacher": 1e-5,
    "center": 1e-6,
}


def differences(case: Case) -> dict[str, float]:
    """How far the two sides lie apart: before the step, and over two steps."""
    ours, plain = Ours(case, CHECK_CLIP), Plain(case, CHECK_CLIP)
    (places, tokens), (plain_places, plain_tokens) = ours.tokens(), plain.tokens()
    losses, gradients = [], []
    for number in range(2):
        loss, plain_loss = ours.step(number), plain.step(number)
        losses.append(abs(loss / plain_loss - 1))
        # AdamW's running means are what is left of the gradients after a step.
        for one, other in zip(gradient_means(ours), gradient_means(plain), strict=True):
            gradients.append(furthest(one, other) / float(other.abs().max()))
    student = joined(ours.task.trainable.parameters()) - joined(plain.student.parameters())
    teachers = (ours.task.teacher, plain.teacher)
    return {
        "landmarks, px": furthest(joined(places), joined(plain_places)),
        "tokens, of [-1, 1]": furthest(joined(tokens) / 127.5 - 1, joined(plain_tokens)),
        "loss, relative": max(losses),
        "gradients, of a tensor's largest": max(gradients),
        "student after two steps, mean, of lr": float(student.abs().mean()) / VALUES["lr"],
        "teacher": furthest(*(joined(teacher.parameters()) for teacher in teachers)),
        "center": furthest(ours.task.center.center, plain.center),
    }


def gradient_means(side: Side) -> list[Tensor]:
    """AdamW's first moments, in the order of the parameters."""
    return [state["exp_avg"] for state in side.optimizer.state.values()]


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers in a row, as float32."""
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def furthest(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference."""
    return float((one - other).abs().max())


def check(case: Case) -> None:
    """Print the differences; leave with an error where they exceed what float32 explains."""
    print("both sides, batch 2, float32, without dropout: difference (allowed)")
    failed = []
    # TF32 in the landmark CNN would be another precision on each of the two batch sizes.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = differences(case)
    for name, difference in found.items():
        allowed = ALLOWED[name]
        print(f"  {name:40}{difference:9.1e} ({allowed:.1e})")
        # Written so that a NaN fails.
        if not difference <= allowed:
            failed.append(name)
    if failed:
        sys.exit(f"ours and the plain step differ in: {'; '.join(failed)}")
    print("equal")


def measure(sides: dict[str, Side], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each stage and of their sums, after one unmeasured round.

    Every round runs both sides, so that a busy neighbor slows them alike and ratios hold.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, side in sides.items():
            side.watch.start()
            side.tokens()
            side.step(number)
            seconds = side.watch.seconds
            sums = {title: sum(seconds[stage] for stage in stages) for title, stages in SUMS.items()}
            rounds[name].append(seconds | sums)
    return {
        name: {stage: statistics.median(r[stage] for r in measured[1:]) for stage in measured[0]}
        for name, measured in rounds.items()
    }


def run(device: torch.device, arguments: argparse.Namespace) -> None:
    """Check and time one device."""
    cuda = device.type == "cuda"
    size = FVIT_SIZES[arguments.size]
    precision = arguments.precision or ("bfloat16" if cuda else "float32")
    case = Case(
        size=size,
        num_prototypes=arguments.prototypes,
        batch=arguments.batch,
        dropout=0.1,
        device=device,
        precision=getattr(torch, precision),
        processor_time=arguments.processor_time,
        compile=arguments.compile,
        recompute=arguments.activation_checkpointing,
    )
    where = torch.cuda.get_device_name(device) if cuda else cpu_name()
    print(
        f"{date.today()}  torch {torch.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, {where}, {torch.get_num_threads()} thread of "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        f"{arguments.size}: {size}\n{case.num_prototypes} prototypes, batch {case.batch}, "
        f"{precision_name(case)}, median of {arguments.repeats}" + ", ms of the processor" * case.processor_time
    )
    check(replace(case, batch=2, dropout=0.0, precision=torch.float32))
    sides = {"ours": Ours, "plain": Plain}
    memory = None
    if not arguments.no_memory:
        memory = {title: peak_bytes(build, case, CLIP) for title, build in sides.items()}
    built: dict[str, Side] = {title: build(case, CLIP) for title, build in sides.items()}
    report(case, measure(built, arguments.repeats), memory)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Run on the device asked for, or on the CPU and on the GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: all there are")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of what is timed; default: float32 on the CPU, bfloat16 on a GPU",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time the processor, not the clock: for one thread on a CPU that others use",
    )
    parser.add_argument("--compile", action="store_true", help="ours with compute.compile")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="ours with compute.activation_checkpointing"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    arguments = parser.parse_args()
    if arguments.processor_time and (arguments.device != "cpu" or arguments.threads != 1):
        parser.error("--processor-time needs --device cpu and one thread")
    torch.set_num_threads(arguments.threads)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [arguments.device] if arguments.device else devices:
        run(torch.device(device), arguments)


if __name__ == "__main__":
    main()
