"""Time the LAFS training step, stage by stage, beside a plain step of the reference's shape.

    python benchmarks/step.py --size tiny --batch 8 --repeats 5

Ours is `training.loop.train_step` itself. The plain step takes one forward a view, attention as
softmax(QKᵀ·scale)V, one `log_softmax` a pair of views, and loops over the parameters to clip, to
update and for the teacher; before it stands one `grid_sample` a landmark. That both compute the
same is checked first, without dropout and in float32. Then they take turns, one round after the
other, and medians are printed. Tokens are random, which changes no time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from views import cpu_name

from lafs_ray.method.draws import ViewSettings
from lafs_ray.method.lafs import Lafs, LafsNetwork
from lafs_ray.method.optim import clip_each_, parameter_groups
from lafs_ray.method.views import ViewCutter, cut_tokens
from lafs_ray.models.fvit import FVIT_SIZES, FViTSize, build_fvit
from lafs_ray.models.heads import DINOHead
from lafs_ray.models.landmarks import LandmarkCNN
from lafs_ray.training.loop import Training, train_step
from lafs_ray.training.stream import Columns, StepBatch

VIEWS = ViewSettings()
CLIP = 3.0
STUDENT_TEMP, CENTRE_MOMENTUM = 0.1, 0.9
VALUES = {"lr": 5e-4, "weight_decay": 0.04, "ema_momentum": 0.996, "teacher_temp": 0.07}

LANDMARKS, PATCHES = "landmark CNN (10 views)", "patches (680 landmarks)"
INPUT, TEACHER, STUDENT = "batch to device", "teacher forward", "student forward"
LOSS, BACKWARD, UPDATE, EMA = "loss", "backward", "clip, AdamW", "EMA, centre"
BEFORE = (LANDMARKS, PATCHES)
STEP = (INPUT, TEACHER, STUDENT, LOSS, BACKWARD, UPDATE, EMA)


class Stopwatch:
    """Seconds of each stage, a stage being what lies between two marks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Forget all stages and begin the next one now."""
        self.seconds = dict.fromkeys((*BEFORE, *STEP), 0.0)
        self.since = self._now()

    def mark(self, stage: str) -> None:
        """End a stage here; it may have several parts."""
        now = self._now()
        self.seconds[stage] += now - self.since
        self.since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Case:
    """What is timed or checked, on both sides alike."""

    size: FViTSize
    num_prototypes: int
    batch: int
    dropout: float
    device: torch.device
    precision: torch.dtype

    def network(self) -> LafsNetwork:
        """A network of equal weights at every call."""
        torch.manual_seed(0)
        backbone = build_fvit(self.size, dropout=self.dropout, drop_path=self.dropout)
        return LafsNetwork(backbone, DINOHead(self.size.width, self.num_prototypes)).to(self.device)

    def columns(self) -> Columns:
        """Random tokens as the cutter delivers them."""
        generator = np.random.default_rng(0)
        sets = {"global_tokens": (2, VIEWS.num_landmarks), "local_tokens": (8, VIEWS.local_tokens)}
        return {
            name: generator.integers(0, 256, (self.batch, *shape, 192), dtype=np.uint8)
            for name, shape in sets.items()
        }

    def views(self) -> tuple[Tensor, Tensor]:
        """Global and local views, [2·B, 3, 112, 112] and [8·B, 3, 112, 112], in 0…255."""
        generator = torch.Generator().manual_seed(0)
        shape = (10 * self.batch, 3, 112, 112)
        views = torch.randint(0, 256, shape, generator=generator).to(self.device, torch.float32)
        return views[: 2 * self.batch], views[2 * self.batch :]

    def landmark_cnn(self) -> LandmarkCNN:
        """The frozen landmark CNN, equal at every call."""
        torch.manual_seed(1)
        return LandmarkCNN(VIEWS.num_landmarks).to(self.device).eval().requires_grad_(False)


class TimedLafs(Lafs):
    """Lafs with marks where `train_step` calls it."""

    watch: Stopwatch

    def loss(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Lafs.loss`; the student's hooks end the teacher's and the student's stages."""
        self.watch.mark(INPUT)
        result = super().loss(*arguments)
        self.watch.mark(LOSS)
        return result

    def finish_step(self, values: Any) -> None:
        """As `Lafs.finish_step`."""
        self.watch.mark(UPDATE)
        super().finish_step(values)
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
        self.optimizer = torch.optim.AdamW(
            groups, lr=VALUES["lr"], fused=case.device.type == "cuda"
        )
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
            for part in views.split(chunk * per_image):
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


class PlainAttention(nn.Module):
    """softmax(QKᵀ·scale)V with every score in memory, over the layers of one of our blocks."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.to_qkv, self.to_out = ours.to_qkv, ours.to_out
        self.heads, self.scale = ours.heads, ours.scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] to [B, n, D]."""
        batch, count, _ = x.shape
        parts = self.to_qkv(x).chunk(3, dim=-1)
        query, key, value = (
            part.reshape(batch, count, self.heads, -1).transpose(1, 2) for part in parts
        )
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, count, -1)
        return self.to_out(mixed)  # type: ignore[no-any-return]


class PlainNetwork(nn.Module):
    """Backbone once for each view, head once for all; takes a `LafsNetwork` over."""

    def __init__(self, network: LafsNetwork) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        blocks: Any = self.backbone.transformer.layers
        for attention, _ in blocks:
            attention.fn.fn = PlainAttention(attention.fn.fn)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Views of [B, n, P] to scores [V·B, K]."""
        return self.head(torch.cat([self.backbone(view) for view in views]))  # type: ignore[no-any-return]


class Plain:
    """The same step written straightforwardly, in the reference's manner."""

    def __init__(self, case: Case, clip: float) -> None:
        self.case, self.clip, self.watch = case, clip, Stopwatch(case.device)
        self.student, self.teacher = PlainNetwork(case.network()), PlainNetwork(case.network())
        self.teacher.requires_grad_(False)
        self.centre = torch.zeros(1, case.num_prototypes, device=case.device)
        groups = parameter_groups(self.student, VALUES["weight_decay"])
        self.optimizer = torch.optim.AdamW(groups, lr=VALUES["lr"], foreach=False, fused=False)
        self.cnn = case.landmark_cnn()
        self.views, self.columns = case.views(), case.columns()

    @torch.no_grad()
    def tokens(self) -> tuple[list[Tensor], list[Tensor]]:
        """Landmarks and float tokens: the CNN once a view, one `grid_sample` a landmark."""
        landmarks, tokens = [], []
        for views, per_image, count in zip(self.views, (2, 8), (196, 36), strict=True):
            for part in views.chunk(per_image):
                view = part / 127.5 - 1
                found = self.cnn(view)
                self.watch.mark(LANDMARKS)
                landmarks.append(found)
                tokens.append(plain_patches(view, found[:, :count]))
                self.watch.mark(PATCHES)
        return landmarks, tokens

    def step(self, number: int) -> float:
        """One step; its loss."""
        torch.manual_seed(number)
        device = self.case.device
        views = [
            torch.from_numpy(self.columns[name][:, view]).to(device).float() / 127.5 - 1
            for name, count in (("global_tokens", 2), ("local_tokens", 8))
            for view in range(count)
        ]
        self.watch.mark(INPUT)
        with torch.autocast(
            device.type, self.case.precision, enabled=self.case.precision != torch.float32
        ):
            with torch.no_grad():
                targets = self.teacher(views[:2])
            self.watch.mark(TEACHER)
            scores = self.student(views)
            self.watch.mark(STUDENT)
            loss = self.loss(scores, targets)
        value = loss.item()
        self.watch.mark(LOSS)
        loss.backward()  # type: ignore[no-untyped-call]
        self.watch.mark(BACKWARD)
        self.update()
        self.watch.mark(UPDATE)
        self.move_teacher(targets)
        self.watch.mark(EMA)
        return value

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The double loop over views that `dino_loss` gives as its definition."""
        predictions = (student.float() / STUDENT_TEMP).chunk(10)
        centred = (teacher.float() - self.centre) / VALUES["teacher_temp"]
        targets = centred.softmax(dim=-1).chunk(2)
        terms = [
            torch.sum(-target * F.log_softmax(prediction, dim=-1), dim=-1).mean()
            for own, target in enumerate(targets)
            for view, prediction in enumerate(predictions)
            if view != own
        ]
        return torch.stack(terms).mean()

    def update(self) -> None:
        """Clip each gradient after reading its norm, then AdamW one parameter at a time."""
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                factor = self.clip / (parameter.grad.norm(2).item() + 1e-6)
                if factor < 1:
                    parameter.grad.mul_(factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def move_teacher(self, scores: Tensor) -> None:
        """Teacher and centre, each a running mean."""
        momentum = VALUES["ema_momentum"]
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for kept, moved in pairs:
            kept.mul_(momentum).add_((1 - momentum) * moved)
        mean = scores.float().mean(dim=0, keepdim=True)
        self.centre = self.centre * CENTRE_MOMENTUM + mean * (1 - CENTRE_MOMENTUM)


def plain_patches(view: Tensor, landmarks: Tensor) -> Tensor:
    """Tokens [B, n, 192] in [-1, 1] of views [B, 3, 112, 112]: a call for every landmark."""
    offsets = torch.arange(8, device=view.device) - 4.0
    along_x, along_y = torch.meshgrid(offsets, offsets, indexing="ij")
    tokens = []
    for landmark in landmarks.unbind(1):
        grid_x, grid_y = landmark[:, 0, None, None] + along_x, landmark[:, 1, None, None] + along_y
        grid = torch.stack((grid_x, grid_y), dim=-1) / 56 - 1
        patch = F.grid_sample(view, grid, align_corners=False)
        tokens.append(patch.permute(0, 2, 3, 1).flatten(1))
    return torch.stack(tokens, dim=1)
