"""The package's own step with marks between its stages, for `step.py` to time.

`training.train_step.train_step` as runs call it, over the method, the optimizer and the cutter of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.plain_step import (
    BACKWARD,
    CENTER_MOMENTUM,
    EMA,
    INPUT,
    LANDMARKS,
    LOSS,
    PATCHES,
    STUDENT,
    STUDENT_TEMP,
    TEACHER,
    UPDATE,
    VALUES,
    VIEWS,
    Case,
    Stopwatch,
)
from lafs_ray.methods.lafs import Lafs
from lafs_ray.methods.optim import RowAdamW, clip_each_, parameter_groups
from lafs_ray.training.compile import compile_blocks
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.train_step import TrainState, train_step
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from lafs_ray.transforms.views import extract_tokens


class TimedLafs(Lafs):
    """Lafs with marks where `train_step` calls it."""

    watch: Stopwatch

    def loss(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Lafs.loss`; the student's hooks end the teacher's and the student's stages.

        What remains for the loss's stage includes the signs of learning, which the plain step does not compute.
        """
        self.watch.mark(INPUT)
        result = super().loss(*arguments)
        self.watch.mark(LOSS)
        return result

    def finish_step(self, hparams: Any, skip_update: Tensor | None = None) -> None:
        """As `Lafs.finish_step`."""
        self.watch.mark(UPDATE)
        super().finish_step(hparams, skip_update)
        self.watch.mark(EMA)


class Ours:
    """`train_step` as it trains, and before it the cutter's way from views to tokens."""

    def __init__(self, case: Case, clip: float) -> None:
        self.case, self.watch = case, case.stopwatch()
        student, teacher, watch = case.network(), case.network(), self.watch
        student.backbone.transformer.recompute = case.recompute
        if case.compile:
            shape = (2 * case.batch, VIEWS.num_landmarks + 1, case.size.width)
            tokens = torch.zeros(shape, device=case.device)
            reason = compile_blocks([student, teacher], tokens, case.precision)
            print(reason, end="\n" * bool(reason))
        student.register_forward_pre_hook(lambda *_: watch.mark(TEACHER))
        student.register_forward_hook(lambda *_: watch.mark(STUDENT))
        self.task = TimedLafs(
            student,
            teacher,
            num_prototypes=case.num_prototypes,
            student_temp=STUDENT_TEMP,
            center_momentum=CENTER_MOMENTUM,
            freeze_last_layer_epochs=1,
            teacher_dropout=True,
            centering="mean",
            koleo=0.0,
        )
        self.task.watch = watch
        groups = parameter_groups(student, VALUES["weight_decay"])
        self.optimizer = RowAdamW(groups, lr=VALUES["lr"], fused=True)
        self.training = TrainState(
            task=self.task,
            network=student,
            optimizer=self.optimizer,
            hparams=lambda _: VALUES,
            device=case.device,
            precision=case.precision,
            seed=0,
            rank=0,
            accumulation=1,
            clip_grad=clip,
            max_bad_records=0,
        )
        self.predict = LandmarkPredictor(case.landmark_cnn(), case.device)
        self.views, self.columns = case.views(), case.columns()

    @torch.no_grad()
    def tokens(self) -> tuple[list[Tensor], list[Tensor]]:
        """Landmarks and 8-bit tokens, global views and then local ones, on a CPU of eight images at a time."""
        landmarks, tokens = [], []
        chunk = 8 if self.case.device.type == "cpu" else self.case.batch
        for views, per_image, count in zip(self.views, (2, 8), (196, 36), strict=True):
            for part in torch.split(views, chunk * per_image):
                found = self.predict(part)
                self.watch.mark(LANDMARKS)
                landmarks.append(found)
                tokens.append(extract_tokens(part, found[:, :count], VIEWS.patch_size))
                self.watch.mark(PATCHES)
        return landmarks, tokens

    def step(self, number: int) -> float:
        """One step; its loss. Epoch 1, in which the last layer is trained."""

        def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
            self.watch.mark(BACKWARD)
            return clip_each_(parameters, max_norm)

        batch = StepBatch(step=number, epoch=1, columns=self.columns, skipped=[])
        # The only seam of train_step that neither the method nor a hook sees.
        with mock.patch("lafs_ray.training.train_step.clip_each_", clip):
            metrics = train_step(self.training, batch, VALUES)
        return float(metrics["loss"])
