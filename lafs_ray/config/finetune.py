"""Settings of supervised training: stage 1 (Part fViT from scratch) and finetuning (stage 3).

The defaults are stage 1; `configs/finetune/full.yaml` and `few_shot.yaml` are finetuning.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config.loader import (
    AnnealingField,
    Duration,
    DurationField,
    Real,
    RealPair,
    Section,
    Tuning,
)
from lafs_ray.config.train import Data, Positive, Rate, TrainConfig


class Subset(Section):
    """A few-shot subset of the set, chosen by its own seed and recorded in the run's folder."""

    images_per_identity: Positive | None = None
    """Images k of every identity; either this or fraction."""
    fraction: Annotated[Real, Field(gt=0.0, le=1.0)] | None = None
    """Share of all images; either this or images_per_identity."""
    order: Literal["random", "head"] = "random"
    """Which share of the images: random ones, or the head of the set (the released code)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the choice; subsets of one seed are nested: k = 1 is part of k = 2."""
    short_identities: Literal["error", "take_all", "drop"] = "error"
    """Identities with fewer than k images: refuse them, take what there is, or leave them out."""

    @model_validator(mode="after")
    def _one_measure(self) -> Subset:
        if (self.images_per_identity is None) == (self.fraction is None):
            given = "both" if self.fraction is not None else "neither"
            raise ValueError(f"images_per_identity, fraction: {given} given - write one of the two")
        if self.order == "head" and self.fraction is None:
            raise ValueError("order: head goes with fraction, not with images_per_identity")
        if self.short_identities != "error" and self.images_per_identity is None:
            raise ValueError("short_identities: goes with images_per_identity, not with fraction")
        return self


class LabeledData(Data):
    """Which labeled faces to read, and how."""

    subset: Subset | None = None
    """Train on a few-shot subset only; the classes stay those of the whole set."""


class Start(Section):
    """Which other runs this one starts from; nothing given is stage 1, from scratch."""

    transformer: str | None = None
    """Pretraining run, its checkpoint or a published one: the teacher's transformer."""
    landmarks: str | None = None
    """Stage-1 run or checkpoint with the landmark CNN, or the word `untrained`; by default the one
    that start.transformer was pretrained with."""


class FinetuneLandmarks(Section):
    """Where patches are cut."""

    source: Literal["cnn", "grid"] = "cnn"
    """cnn: at the landmark CNN's landmarks; grid: plain patches (DINO-face)."""


class Regularizer(Section):
    """Pull of the landmarks towards those of the frozen CNN that the run started with.

    λ·MSE in units of 111 pixels (the image's side).
    """

    strength: Annotated[Real, Field(ge=0.0)] = 0.0
    """Factor on all weights of the table; 0 switches the regularizer off, 1 is the paper's."""
    table: AnnealingField = (
        (Duration(amount=8 / 34, unit="run"), 1000.0),
        (Duration(amount=14 / 34, unit="run"), 100.0),
        (Duration(amount=21 / 34, unit="run"), 1.0),
        (Duration(amount=28 / 34, unit="run"), 0.11),
    )
    """Pairs of an end and the weight λ up to there, 0 after the last; by default those of the
    reference's 34 epochs (8, 14, 21 and 28 of them), as shares of the run."""

    @model_validator(mode="after")
    def _table_is_in_order(self) -> Regularizer:
        for (before, _), (end, _) in itertools.pairwise(self.table):
            if before.unit == end.unit and before.amount >= end.amount:
                raise ValueError(f"table: {end} comes after {before} - write ends in their order")
        if any(weight < 0 for _, weight in self.table):
            raise ValueError("table: a weight is negative - write 0 or more")
        return self


class MarginLoss(Section):
    """The margin softmax."""

    kind: Literal["cosface", "arcface"] = "cosface"
    """Where the margin stands: off the cosine (CosFace), or on the angle (ArcFace)."""
    scale: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 64.0
    """Scale s of the cosine."""
    margin: Annotated[Real, Field(ge=0.0, lt=1.0), Tuning.MUTABLE] = 0.4
    """Margin m of the right class: a cosine, or radians for arcface, where 0.5 is usual."""
    sample_rate: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the classes in a step's softmax (Partial FC): the batch's own, others at random."""


class Augmentation(Section):
    """Appearance of the one view that a labeled face is trained on."""

    flip: Rate = 0.5
    """Probability of a mirrored face."""
    crop_area: RealPair = (0.9, 1.0)
    """Share of the image's area that is shown, least and most."""
    jitter: Rate = 0.1
    """Strength of brightness, contrast, saturation and hue jitter."""
    rand_augment: Annotated[int, Field(ge=0, le=9)] | None = None
    """Magnitude M of timm's rand-mM-mstd0.5-inc1 (two of 15 operations), none: without. The paper
    has 2 on MS1MV3 and 1 on WebFace4M."""
    erasing: Rate = 0.0
    """Probability of a black rectangle; 0.5 in the paper."""
    erasing_area: RealPair = (0.02, 0.1)
    """Share of the view's area that the rectangle covers, least and most."""

    @model_validator(mode="after")
    def _areas_are_ranges(self) -> Augmentation:
        for name in ("crop_area", "erasing_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}: [{low}, {high}] - write 0 < least <= most <= 1")
        return self


class Mixup(Section):
    """Blends of two faces, with shares of both labels."""

    probability: Rate = 0.0
    """Share of the steps that are mixed; the paper has 0.2 on MS1MV3 and 0.1 on WebFace4M."""
    alpha: Annotated[Real, Field(gt=0.0)] = 0.2
    """Both parameters of the Beta distribution of the share λ."""


class Freeze(Section):
    """Parts that begin to learn later; `1 run` is never. A frozen part is in eval mode."""

    landmarks: DurationField = Duration(amount=0.0, unit="epochs")
    """How long the landmark CNN stays as it started."""
    transformer: DurationField = Duration(amount=0.0, unit="epochs")
    """How long the transformer does; with both, only the classes learn."""


class SupervisedOptimizer(Section):
    """AdamW and its schedule."""

    lr: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 1e-3
    """Peak learning rate as it is, not scaled by the batch; the paper's rule is
    1e-3 · accumulation / 480 · 336 · √(batch_size / accumulation / 336)."""
    layer_decay: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate from each block to the one before it; landmark CNN, patch
    embedding, class token and positions lie before the first. 0.58 for finetuning in the paper."""
    landmark_lr_scale: Annotated[Real, Field(gt=0.0)] = 1.0
    """Share of the learning rate for the landmark CNN; below 1 its landmarks settle sooner."""
    landmark_decay_scale: Rate = 0.5
    """Share of the weight decay for the landmark CNN's trunk; a half as in the released code."""
    min_lr: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 1e-6
    """Learning rate at the end of the cosine."""
    warmup: DurationField = Duration(amount=5.0, unit="epochs")
    """Linear warm-up from 0."""
    weight_decay: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.1
    """Weight decay; none on biases and norms."""


class FinetuneConfig(TrainConfig):
    """Supervised training of Part fViT: from scratch (stage 1), or from other runs (stage 3)."""

    data: LabeledData
    """The labeled faces."""
    start: Start = Start()
    """Weights to begin with."""
    landmarks: FinetuneLandmarks = FinetuneLandmarks()
    """Landmarks or grid."""
    duration: DurationField = Duration(amount=34.0, unit="epochs")
    """Length of the run, in epochs or steps."""
    batch_size: Positive = 480
    """Faces in one optimizer step, over all workers and micro-batches."""
    margin: Annotated[MarginLoss, Tuning.DEFINES_LOSS] = MarginLoss()
    """Loss."""
    regularizer: Annotated[Regularizer, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Regularizer()
    """Landmark regularizer."""
    augmentation: Annotated[Augmentation, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Augmentation()
    """View."""
    mixup: Annotated[Mixup, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Mixup()
    """Mix-up."""
    freeze: Freeze = Freeze()
    """Parts that begin to learn later."""
    optim: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer."""

    @model_validator(mode="after")
    def _grid_is_without_landmarks(self) -> FinetuneConfig:
        if self.landmarks.source != "grid":
            return self
        self.model.require_grid()
        if self.start.landmarks is not None:
            raise ValueError(
                f"start.landmarks: {self.start.landmarks}, but landmarks.source=grid has no "
                "landmark CNN; give one of the two"
            )
        if self.regularizer.strength > 0:
            raise ValueError(
                f"regularizer.strength: {self.regularizer.strength:g}, but landmarks.source=grid "
                "has no landmarks to hold; write 0"
            )
        return self

    @model_validator(mode="after")
    def _mixup_has_pairs(self) -> FinetuneConfig:
        for workers in self.compute.worker_counts if self.mixup.probability > 0 else ():
            if (held := self.batch_size // (workers * self.accumulation)) % 2:
                raise ValueError(
                    f"mixup.probability: {self.mixup.probability:g} mixes faces in pairs, but a "
                    f"micro-batch holds {held}: batch_size {self.batch_size} over {workers} "
                    f"workers × {self.accumulation} micro-batches; make it even"
                )
        return self

    @model_validator(mode="after")
    def _frozen_parts_exist(self) -> FinetuneConfig:
        if self.landmarks.source == "grid" and self.freeze.landmarks.amount > 0:
            raise ValueError(
                f"freeze.landmarks: {self.freeze.landmarks}, but landmarks.source=grid has no "
                "landmark CNN; write 0 epochs"
            )
        return self

    @model_validator(mode="after")
    def _regularizer_has_a_target(self) -> FinetuneConfig:
        start, strength = self.start, self.regularizer.strength
        if strength > 0 and (
            start.landmarks == "untrained" or (start.landmarks or start.transformer) is None
        ):
            raise ValueError(
                f"regularizer.strength: {strength:g}, but no trained landmark CNN to hold on to; "
                "give start.landmarks (a stage-1 run), or write 0"
            )
        return self
