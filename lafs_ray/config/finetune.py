"""Settings of supervised training: stage 1 (Part fViT from scratch) and finetuning (stage 3).

The defaults are stage 1; `configs/finetune/full.yaml` and `few_shot.yaml` are finetuning.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lafs_ray.config.data import Data
from lafs_ray.config.finetune_model import FinetuneModel, Freeze, Lora
from lafs_ray.config.loader import AnnealingField, Duration, DurationField, Real, RealPair, Section, Tuning
from lafs_ray.config.paths import AbsolutePath
from lafs_ray.config.train import Positive, Rate, TrainConfig


class Subset(Section):
    """A few-shot subset of the set, sampled with its own seed and recorded in the run's folder."""

    images_per_identity: Positive | None = None
    """Images k per identity; either this or fraction."""
    fraction: Annotated[Real, Field(gt=0.0, le=1.0)] | None = None
    """Fraction of all images; either this or images_per_identity."""
    order: Literal["random", "head"] = "random"
    """Which fraction: random images, or the first of the set (released code)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sample; subsets of one seed are nested: k = 1 is part of k = 2."""
    short_identities: Literal["error", "take_all", "drop"] = "error"
    """Identities with fewer than k images: an error, take all of them, or drop the identity."""

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
    """The labeled faces to train on."""

    subset: Subset | None = None
    """Train on a few-shot subset; the classes remain those of the whole set."""


class Start(Section):
    """Pretrained weights; none is stage 1, training from scratch."""

    transformer: str | None = None
    """Pretraining run or checkpoint (ours or published); its teacher's transformer is used. Or a file of timm's own
    weights of model.student."""
    landmarks: str | None = None
    """Stage-1 run or checkpoint with the landmark CNN, or `untrained`; default: the CNN that start.transformer was
    pretrained with."""


class FinetuneLandmarks(Section):
    """Positions of the patches."""

    source: Literal["cnn", "template", "grid"] = "cnn"
    """cnn: at predicted landmarks; template: at the same positions in every face; grid: plain patches (DINO-face)."""
    template: AbsolutePath | None = None
    """Positions of source template, as in pretraining; null: those that start.transformer was pretrained with, else
    the square grid."""


class Regularizer(Section):
    """Regularizer towards the landmarks of the initial, frozen CNN.

    λ·MSE in units of 111 pixels (the image's side).
    """

    strength: Annotated[Real, Field(ge=0.0)] = 0.0
    """Factor on all weights of the table; 0 disables the regularizer, 1 is the paper's."""
    table: AnnealingField = (
        (Duration(amount=8 / 34, unit="run"), 1000.0),
        (Duration(amount=14 / 34, unit="run"), 100.0),
        (Duration(amount=21 / 34, unit="run"), 1.0),
        (Duration(amount=28 / 34, unit="run"), 0.11),
    )
    """Pairs of an end and the weight λ up to it; 0 after the last. Default: the reference's ends (8, 14, 21 and 28 of
    34 epochs) as fractions of the run."""

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
    """Margin type: subtracted from the cosine (CosFace) or added to the angle (ArcFace)."""
    scale: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 64.0
    """Scale s of the cosine."""
    margin: Annotated[Real, Field(ge=0.0, lt=1.0), Tuning.MUTABLE] = 0.4
    """Margin m of the target class: a cosine, or radians for arcface, where 0.5 is usual."""
    sample_rate: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """Fraction of the classes in a step's softmax (Partial FC): the batch's classes and random others."""


class Augmentation(Section):
    """Augmentation of the single view of a labeled face."""

    flip: Rate = 0.5
    """Probability of a horizontal flip."""
    crop_area: RealPair = (0.9, 1.0)
    """Range of the crop's area, as a fraction of the image."""
    jitter: Rate = 0.1
    """Strength of brightness, contrast, saturation and hue jitter."""
    rand_augment: Annotated[int, Field(ge=0, le=9)] | None = None
    """Magnitude M of timm's rand-mM-mstd0.5-inc1 (two of 15 operations); null: none. The paper uses 2 on MS1MV3 and 1
    on WebFace4M."""
    erasing: Rate = 0.0
    """Probability of random erasing (black rectangle); 0.5 in the paper."""
    erasing_area: RealPair = (0.02, 0.1)
    """Range of the erased area, as a fraction of the view."""

    @model_validator(mode="after")
    def _areas_are_ranges(self) -> Augmentation:
        for name in ("crop_area", "erasing_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}: [{low}, {high}] - write 0 < least <= most <= 1")
        return self


class Mixup(Section):
    """Mix-up of pairs of faces and their labels."""

    probability: Rate = 0.0
    """Probability that a step is mixed; the paper uses 0.2 on MS1MV3 and 0.1 on WebFace4M."""
    alpha: Annotated[Real, Field(gt=0.0)] = 0.2
    """Both parameters of the Beta distribution of λ."""


def _parse_rate(value: Any) -> Any:
    value = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if value != "paper" and not (isinstance(value, float) and 0 < value < math.inf):
        raise ValueError(f"{repr(value)[:200]} - write a number greater than 0, or paper")
    return value


PeakRate = Annotated[float | Literal["paper"], BeforeValidator(_parse_rate)]


class SupervisedOptimizer(Section):
    """AdamW and its schedule."""

    lr: Annotated[PeakRate, Tuning.MUTABLE] = 1e-3
    """Peak learning rate: a number, which is not scaled by the batch, or paper: the published rule, 1e-3 ·
    accumulation / 480 · 336 · √(batch_size / accumulation / 336), which follows the batch."""
    layer_decay: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """Layer-wise lr decay: factor from each block to the one before it; landmark CNN, patch embedding, class token and
    positions precede the first block. The paper uses 0.58 for finetuning."""
    landmark_lr_scale: Annotated[Real, Field(gt=0.0)] = 1.0
    """Factor on the learning rate of the landmark CNN; below 1 its landmarks converge sooner."""
    landmark_decay_scale: Rate = 0.5
    """Factor on the weight decay of the landmark CNN's trunk; 0.5 as in the released code."""
    min_lr: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 1e-6
    """Final learning rate of the cosine."""
    warmup: DurationField = Duration(amount=5.0, unit="epochs")
    """Linear warm-up from 0."""
    handover: Literal["exact", "released"] = "exact"
    """After the warm-up, the cosine falls from lr (exact), or from 2 / (1 + cos(π / T)) times lr, where T steps are
    left (released code: 1 + 1.8e-4 for 116 steps, 1.017 for 12)."""
    weight_decay: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.1
    """Weight decay; none on biases and norms."""

    @model_validator(mode="after")
    def _handover_follows_a_warmup(self) -> SupervisedOptimizer:
        if self.handover == "released" and self.warmup.amount == 0:
            raise ValueError("handover: released, but warmup is 0 epochs - there is no handover; write exact")
        return self


class FinetuneConfig(TrainConfig):
    """Supervised training of Part fViT: from scratch (stage 1), or from other runs (stage 3)."""

    data: LabeledData
    """The labeled faces."""
    model: FinetuneModel = FinetuneModel()
    """The network."""
    start: Start = Start()
    """Pretrained weights."""
    landmarks: FinetuneLandmarks = FinetuneLandmarks()
    """Landmarks or grid."""
    duration: DurationField = Duration(amount=34.0, unit="epochs")
    """Length of the run, in epochs or steps."""
    batch_size: Positive = 480
    """Global batch: faces in one optimizer step, over all workers and micro-batches."""
    margin: Annotated[MarginLoss, Tuning.DEFINES_LOSS] = MarginLoss()
    """Loss."""
    regularizer: Annotated[Regularizer, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Regularizer()
    """Landmark regularizer."""
    augmentation: Annotated[Augmentation, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Augmentation()
    """View."""
    mixup: Annotated[Mixup, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Mixup()
    """Mix-up."""
    freeze: Freeze = Freeze()
    """Frozen parts."""
    lora: Lora = Lora()
    """Low-rank adaptation."""
    optim: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer."""

    @property
    def peak_lr(self) -> float:
        """Peak learning rate; by the rule of the released code where it is `paper`."""
        if self.optim.lr != "paper":
            return self.optim.lr
        return 1e-3 * self.accumulation / 480 * 336 * math.sqrt(self.batch_size / self.accumulation / 336)

    @model_validator(mode="after")
    def _landmarks_are_not_cached(self) -> FinetuneConfig:
        self.data.refuse_landmarks("supervised training uses no cached landmarks")
        return self

    @model_validator(mode="after")
    def _grid_is_without_landmarks(self) -> FinetuneConfig:
        if self.landmarks.source != "grid":
            return self
        self.model.require_grid()
        if self.start.landmarks is not None:
            raise ValueError(
                f"start.landmarks: {self.start.landmarks}, but landmarks.source=grid has no "
                "landmark CNN; set one of the two"
            )
        if self.regularizer.strength > 0:
            raise ValueError(
                f"regularizer.strength: {self.regularizer.strength:g}, but landmarks.source=grid "
                "has no landmarks; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _template_is_without_cnn(self) -> FinetuneConfig:
        landmarks, start = self.landmarks, self.start
        if landmarks.source != "template":
            if landmarks.template is not None:
                raise ValueError(
                    f"landmarks.template: {landmarks.template}, but landmarks.source={landmarks.source}; "
                    "set landmarks.source=template, or leave it out"
                )
            return self
        if start.transformer is None:
            self.model.require_square(landmarks.template)
        if start.landmarks is not None:
            raise ValueError(
                f"start.landmarks: {start.landmarks}, but landmarks.source=template has no landmark CNN; set one of "
                "the two"
            )
        if self.regularizer.strength > 0:
            raise ValueError(
                f"regularizer.strength: {self.regularizer.strength:g}, but landmarks.source=template has no "
                "landmark CNN to regularize; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _whitening_is_fitted(self) -> FinetuneConfig:
        if self.model.whitened_dim is not None and self.start.transformer is None:
            raise ValueError(
                f"model.whitened_dim: {self.model.whitened_dim}, but a whitening is fitted, not trained from scratch; "
                "set start.transformer to a file of jobs/whiten.py, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _mixup_has_pairs(self) -> FinetuneConfig:
        for workers in self.compute.worker_counts if self.mixup.probability > 0 else ():
            if (size := self.batch_size // (workers * self.accumulation)) % 2:
                raise ValueError(
                    f"mixup.probability: {self.mixup.probability:g} mixes faces in pairs, but a "
                    f"micro-batch has {size}: batch_size {self.batch_size} over {workers} "
                    f"workers × {self.accumulation} micro-batches; make it even"
                )
        return self

    @model_validator(mode="after")
    def _frozen_parts_exist(self) -> FinetuneConfig:
        source = self.landmarks.source
        if source != "cnn" and self.freeze.landmarks.amount > 0:
            raise ValueError(
                f"freeze.landmarks: {self.freeze.landmarks}, but landmarks.source={source} has no "
                "landmark CNN; set it to 0 epochs"
            )
        return self

    @model_validator(mode="after")
    def _frozen_weights_are_trained_ones(self) -> FinetuneConfig:
        for key, value in (("freeze.blocks", self.freeze.blocks), ("lora.rank", self.lora.rank)):
            if value is not None and self.start.transformer is None:
                raise ValueError(
                    f"{key}: {value}, but the transformer starts from scratch, and would stay so; set start.transformer"
                )
        if self.lora.rank is not None and self.freeze.transformer == Duration(amount=1.0, unit="run"):
            raise ValueError(
                f"lora.rank: {self.lora.rank}, but freeze.transformer=1 run freezes its changes too; set one of the two"
            )
        return self

    @model_validator(mode="after")
    def _regularizer_has_a_target(self) -> FinetuneConfig:
        start, strength = self.start, self.regularizer.strength
        if strength > 0 and (start.landmarks == "untrained" or (start.landmarks or start.transformer) is None):
            raise ValueError(
                f"regularizer.strength: {strength:g}, but there is no trained landmark CNN; set "
                "start.landmarks (a stage-1 run), or set it to 0"
            )
        return self
