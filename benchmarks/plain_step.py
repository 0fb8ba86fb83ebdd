"""The LAFS step written straightforwardly, in the reference's manner; `step.py` times it.

One forward a view, attention as softmax(QKᵀ·scale)V, one `log_softmax` a pair of views, loops over the parameters to
clip, to update and for the teacher, a host that waits for the loss and for every norm; before the step one
`grid_sample` a landmark. Layers are ours, so that only the way differs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.config.train import Model
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.methods.lafs import LafsNetwork
from lafs_ray.methods.optim import parameter_groups
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.training.input_pipeline import Columns
from lafs_ray.training.tasks.pretrain import view_settings

VIEWS = view_settings(Model(), Views(), PretrainLandmarks())
STUDENT_TEMP, CENTER_MOMENTUM = 0.1, 0.9
VALUES = {"lr": 5e-4, "weight_decay": 0.04, "ema_momentum": 0.996, "teacher_temp": 0.07}

LANDMARKS, PATCHES = "landmark CNN (10 views)", "patches (680 landmarks)"
INPUT, TEACHER, STUDENT = "batch to device", "teacher forward", "student forward"
LOSS, BACKWARD, UPDATE, EMA = "loss", "backward", "clip, AdamW", "EMA, center"
BEFORE = (LANDMARKS, PATCHES)
STEP = (INPUT, TEACHER, STUDENT, LOSS, BACKWARD, UPDATE, EMA)


class Stopwatch:
    """Seconds of each stage, a stage being what lies between two marks.

    Args:
        device: whose queue is waited for.
        processor: count the time of this process's processors, whoever else uses them.
    """

    def __init__(self, device: torch.device, *, processor: bool = False) -> None:
        self.device, self.clock = device, time.process_time if processor else time.perf_counter
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
        return self.clock()


@dataclass(frozen=True)
class Case:
    """What is timed or checked, on both sides alike; `compile` and `recompute` are for ours."""

    size: FViTSize
    num_prototypes: int
    batch: int
    dropout: float
    device: torch.device
    precision: torch.dtype
    processor_time: bool = False
    hidden_dim: int = 2048
    compile: bool = False
    recompute: bool = False

    def stopwatch(self) -> Stopwatch:
        """What both sides are timed with."""
        return Stopwatch(self.device, processor=self.processor_time)

    def network(self) -> LafsNetwork:
        """A network of equal weights at every call."""
        torch.manual_seed(0)
        backbone = FViT(self.size, dropout=self.dropout, drop_path=self.dropout)
        head = DINOHead(self.size.width, self.num_prototypes, hidden_dim=self.hidden_dim)
        return LafsNetwork(backbone, head).to(self.device)

    def columns(self, seed: int = 0) -> Columns:
        """Random tokens as the cutter delivers them."""
        generator = np.random.default_rng(seed)
        sets = {"global_tokens": (2, VIEWS.num_landmarks), "local_tokens": (8, VIEWS.local_tokens)}
        return {
            name: generator.integers(0, 256, (self.batch, *shape, 192), dtype=np.uint8) for name, shape in sets.items()
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
        query, key, value = (part.reshape(batch, count, self.heads, -1).transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, count, -1)
        return self.to_out(mixed)  # type: ignore[no-any-return]


class PlainResidual(nn.Module):
    """x + a branch with dropout, whole samples of which are set to zero; over one of ours."""

    def __init__(self, ours: Any, drop_path: float) -> None:
        super().__init__()
        self.fn, self.dropout, self.keep = ours.fn, nn.Dropout(ours.dropout_rate), 1 - drop_path

    def forward(self, x: Tensor, *_: Tensor | bool | None) -> Tensor:
        """[B, n, D] to the same shape, always all tokens."""
        branch = self.dropout(self.fn(x))
        if self.training and self.keep < 1:
            branch = branch / self.keep * branch.new_empty(len(x), 1, 1).bernoulli_(self.keep)
        return x + branch  # type: ignore[no-any-return]


class PlainNetwork(nn.Module):
    """Backbone once for each view, head once for all; takes a `LafsNetwork` over."""

    def __init__(self, network: LafsNetwork) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        transformer: Any = self.backbone.transformer
        rate, transformer.depth.rate = transformer.depth.rate, 0.0
        self.backbone.dropout = nn.Dropout(self.backbone.dropout.rate)
        for block in transformer.layers:
            attention, mlp = (branch.fn for branch in block)
            attention.fn = PlainAttention(attention.fn)
            mlp.fn.net[2] = nn.Dropout(mlp.fn.net[2].rate)
            block[0], block[1] = PlainResidual(block[0], rate), PlainResidual(block[1], rate)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Views of [B, n, P] to scores [V·B, K]."""
        return self.head(torch.cat([self.backbone(view) for view in views]))  # type: ignore[no-any-return]


class Plain:
    """The same step written straightforwardly, in the reference's manner."""

    def __init__(self, case: Case, clip: float) -> None:
        self.case, self.clip, self.watch = case, clip, case.stopwatch()
        self.student, self.teacher = PlainNetwork(case.network()), PlainNetwork(case.network())
        self.teacher.requires_grad_(False)
        self.center = torch.zeros(1, case.num_prototypes, device=case.device)
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
        with torch.autocast(device.type, self.case.precision, enabled=self.case.precision != torch.float32):
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
        centered = (teacher.float() - self.center) / VALUES["teacher_temp"]
        targets = centered.softmax(dim=-1).chunk(2)
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
        """Teacher and center, each a running mean."""
        momentum = VALUES["ema_momentum"]
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for kept, moved in pairs:
            kept.mul_(momentum).add_((1 - momentum) * moved)
        mean = scores.float().mean(dim=0, keepdim=True)
        self.center = self.center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)


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
