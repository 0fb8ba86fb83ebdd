"""Time the LAFS training step, stage by stage, beside a plain step of the reference's shape.

    python benchmarks/step.py --size tiny --batch 8 --repeats 5

Ours is `training.loop.train_step` itself; the plain step is `plain_step.py`. That both compute the
same is checked first, without dropout and in float32. Then they take turns, one round after the
other, with the recipe's dropout, and medians are printed. Tokens are random, which changes no time.
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
from typing import Any
from unittest import mock

import numpy as np
import torch
from plain_step import (
    BACKWARD,
    BEFORE,
    CENTRE_MOMENTUM,
    EMA,
    INPUT,
    LANDMARKS,
    LOSS,
    PATCHES,
    STEP,
    STUDENT,
    STUDENT_TEMP,
    TEACHER,
    UPDATE,
    VALUES,
    VIEWS,
    Case,
    Plain,
    PlainNetwork,
    Stopwatch,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from views import cpu_name

from lafs_ray.method.lafs import Lafs
from lafs_ray.method.optim import RowAdamW, clip_each_, parameter_groups
from lafs_ray.method.views import ViewCutter, cut_tokens
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.training.loop import Training, train_step
from lafs_ray.training.stream import StepBatch

CLIP = 3.0
# A norm that nearly every gradient of the check exceeds, so that clipping is checked as well.
CHECK_CLIP = 0.01
# Sums in another order: some 1e-6 of a number, more after a second step, as weights differ then.
# AdamW divides a gradient by its size, so where it is nearly zero rounding decides the direction of
# a weight: hence a mean over all weights. Half a step of 8 bits is 0.0039 of [-1, 1], to which
# comes what landmarks apart by 1e-4 px make of noise.
ALLOWED = {
    "landmarks, px": 1e-2,
    "tokens, of [-1, 1]": 0.5 / 127.5 + 1e-3,
    "loss, relative": 1e-5,
    "gradients, of a tensor's largest": 1e-3,
    "student after two steps, mean, of lr": 1e-3,
    "teacher": 1e-5,
    "centre": 1e-6,
}
TOTAL = "step, from tokens"
SUMS = {TOTAL: STEP, "the same after landmarks, patches": (*BEFORE, *STEP)}


class TimedLafs(Lafs):
    """Lafs with marks where `train_step` calls it."""

    watch: Stopwatch

    def loss(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Lafs.loss`; the student's hooks end the teacher's and the student's stages.

        What remains for the loss's stage includes the signs of learning, which the plain step does
        not compute.
        """
        self.watch.mark(INPUT)
        result = super().loss(*arguments)
        self.watch.mark(LOSS)
        return result

    def finish_step(self, values: Any, hold: Tensor | None = None) -> None:
        """As `Lafs.finish_step`."""
        self.watch.mark(UPDATE)
        super().finish_step(values, hold)
        self.watch.mark(EMA)


class Ours:
    """`train_step` as it trains, and before it the cutter's way from views to tokens."""

    def __init__(self, case: Case, clip: float) -> None:
        self.case, self.watch = case, Stopwatch(case.device)
        student, watch = case.network(), self.watch
        student.register_forward_pre_hook(lambda *_: watch.mark(TEACHER))
        student.register_forward_hook(lambda *_: watch.mark(STUDENT))
        self.method = TimedLafs(
            student,
            case.network(),
            num_prototypes=case.num_prototypes,
            student_temp=STUDENT_TEMP,
            centre_momentum=CENTRE_MOMENTUM,
        )
        self.method.watch = watch
        groups = parameter_groups(student, VALUES["weight_decay"])
        self.optimizer = RowAdamW(groups, lr=VALUES["lr"], fused=case.device.type == "cuda")
        self.training = Training(
            method=self.method,
            network=student,
            optimizer=self.optimizer,
            values=lambda _: VALUES,
            prepare=lambda batch: batch,
            device=case.device,
            precision=case.precision,
            seed=0,
            rank=0,
            accumulation=1,
            clip_grad=clip,
            max_bad_records=0,
        )
        self.cutter = ViewCutter(VIEWS, case.landmark_cnn(), 0, device=case.device)
        self.views, self.columns = case.views(), case.columns()

    @torch.no_grad()
    def tokens(self) -> tuple[list[Tensor], list[Tensor]]:
        """Landmarks and 8-bit tokens, global views and then local ones, in the cutter's chunks."""
        landmarks, tokens = [], []
        chunk = self.cutter.chunk if self.case.device.type == "cpu" else self.case.batch
        for views, per_image, count in zip(self.views, (2, 8), (196, 36), strict=True):
            for part in torch.split(views, chunk * per_image):
                found = self.cutter.find_landmarks(part)
                self.watch.mark(LANDMARKS)
                landmarks.append(found)
                tokens.append(cut_tokens(part, found[:, :count], VIEWS.patch_size))
                self.watch.mark(PATCHES)
        return landmarks, tokens

    def step(self, number: int) -> float:
        """One step; its loss. Epoch 1, in which the last layer is trained."""

        def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
            self.watch.mark(BACKWARD)
            return clip_each_(parameters, max_norm)

        batch = StepBatch(step=number, epoch=1, columns=self.columns, skipped=[])
        # The only seam of train_step that neither the method nor a hook sees.
        with mock.patch("lafs_ray.training.loop.clip_each_", clip):
            metrics = train_step(self.training, batch, VALUES)
        return float(metrics["loss"])


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
    student = joined(ours.method.trainable.parameters()) - joined(plain.student.parameters())
    teachers = (ours.method.teacher, plain.teacher)
    return {
        "landmarks, px": furthest(joined(places), joined(plain_places)),
        "tokens, of [-1, 1]": furthest(joined(tokens) / 127.5 - 1, joined(plain_tokens)),
        "loss, relative": max(losses),
        "gradients, of a tensor's largest": max(gradients),
        "student after two steps, mean, of lr": float(student.abs().mean()) / VALUES["lr"],
        "teacher": furthest(*(joined(teacher.parameters()) for teacher in teachers)),
        "centre": furthest(ours.method.centre.centre, plain.centre),
    }


def gradient_means(side: Ours | Plain) -> list[Tensor]:
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


def measure(sides: dict[str, Ours | Plain], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each stage and of their sums, after one unmeasured round.

    Every round runs both sides, so that a busy neighbour slows them alike and ratios hold.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, side in sides.items():
            side.watch.start()
            side.tokens()
            side.step(number)
            seconds = side.watch.seconds
            sums = {
                title: sum(seconds[stage] for stage in stages) for title, stages in SUMS.items()
            }
            rounds[name].append(seconds | sums)
    return {
        name: {stage: statistics.median(r[stage] for r in measured[1:]) for stage in measured[0]}
        for name, measured in rounds.items()
    }


def count_flops(case: Case) -> dict[str, float]:
    """FLOP an image: products of matrices in the forward passes, a multiply-add being two.

    Counted on the plain network (the counter does not know the CPU's fused attention), on the meta
    device, which computes nothing. The backward pass is taken as twice the student's forward.
    Norms, softmax, activations, loss and optimiser are left out.
    """
    with torch.device("meta"), torch.no_grad():
        network = PlainNetwork(replace(case, device=torch.device("meta")).network())
        views = [torch.empty(1, count, 192) for count in [196] * 2 + [36] * 8]
        flops = []
        for passed in (views[:2], views):
            with FlopCounterMode(display=False) as counter:
                network(passed)
            flops.append(counter.get_total_flops())
    teacher, student = flops
    return {TEACHER: teacher, STUDENT: student, BACKWARD: 2 * student, TOTAL: teacher + 3 * student}


def matmul_peak(device: torch.device, precision: torch.dtype) -> float:
    """FLOP/s of a large product of square matrices, median of seven."""
    side = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    watch, times = Stopwatch(device), []
    for _ in range(7):
        watch.start()
        torch.mm(one, other)
        watch.mark(INPUT)
        times.append(watch.seconds[INPUT])
    return 2 * side**3 / statistics.median(times)


def report(case: Case, medians: dict[str, dict[str, float]]) -> None:
    """Print the times, the ratios and what share of the device's peak they are."""
    ours, plain = medians["ours"], medians["plain"]
    print(f"\n{'ms an image':32}{'ours':>10}{'plain':>10}{'plain/ours':>12}")
    for stage in (*BEFORE, *STEP, *SUMS):
        here, there = (side[stage] * 1e3 / case.batch for side in (ours, plain))
        print(f"{stage:32}{here:10.2f}{there:10.2f}{there / here:10.2f} ×")
    for title in SUMS:
        here, there = (case.batch / side[title] for side in (ours, plain))
        print(f"{title}: {here:.2f} images/s, plain {there:.2f}: ratio {here / there:.2f}")
    peaks = {kind: matmul_peak(case.device, kind) for kind in {torch.float32, case.precision}}
    for kind, peak in peaks.items():
        print(f"{str(kind).removeprefix('torch.')} matmul peak {peak / 1e9:.1f} GFLOP/s")
    titles = f"{'ours GFLOP/s':>14}{'of peak':>9}{'plain':>9}{'of peak':>9}"
    print(f"{'counted GFLOP an image':42}{titles}")
    for stage, flops in count_flops(case).items():
        print(f"{stage:32}{flops / 1e9:10.2f}", end="")
        for width, side in ((14, ours), (9, plain)):
            achieved = flops * case.batch / side[stage]
            print(f"{achieved / 1e9:{width}.1f}{achieved / peaks[case.precision]:9.0%}", end="")
        print()


def run(device: torch.device, arguments: argparse.Namespace) -> None:
    """Check and time one device."""
    cuda = device.type == "cuda"
    size = FVIT_SIZES[arguments.size]
    case = Case(
        size=size,
        num_prototypes=arguments.prototypes,
        batch=arguments.batch,
        dropout=0.1,
        device=device,
        precision=torch.bfloat16 if cuda else torch.float32,
    )
    name = torch.cuda.get_device_name(device) if cuda else cpu_name()
    print(
        f"{date.today()}  torch {torch.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, {name}, {torch.get_num_threads()} thread of "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        f"{arguments.size}: {size}\n{case.num_prototypes} prototypes, batch {case.batch}, "
        f"{str(case.precision).removeprefix('torch.')}, median of {arguments.repeats}"
    )
    check(replace(case, batch=2, dropout=0.0, precision=torch.float32))
    report(case, measure({"ours": Ours(case, CLIP), "plain": Plain(case, CLIP)}, arguments.repeats))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Run on the device asked for, or on the CPU and on the GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: all there are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [arguments.device] if arguments.device else devices:
        run(torch.device(device), arguments)


if __name__ == "__main__":
    main()
