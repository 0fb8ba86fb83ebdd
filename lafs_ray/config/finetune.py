"""Settings of supervised training (stage 1: Part fViT and its landmark CNN, end to end)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lafs_ray.config.base import Duration, DurationField, Real, RealPair, Section
from lafs_ray.config.sections import Job, Positive, Rate


class Margin(Section):
    """The margin softmax (CosFace)."""

    scale: Annotated[Real, Field(gt=0.0)] = 64.0
    """Scale s of the cosine."""
    margin: Annotated[Real, Field(ge=0.0, lt=1.0)] = 0.4
    """Margin m taken from the cosine of the right class."""


class Augmentation(Section):
    """Appearance of the one view that a labelled face is trained on."""

    flip: Rate = 0.5
    """Probability of a mirrored face."""
    crop_area: RealPair = (0.9, 1.0)
    """Share of the image's area that is shown, least and most."""
    jitter: Rate = 0.1
    """Strength of brightness, contrast, saturation and hue jitter."""

    @model_validator(mode="after")
    def _crop_area_is_a_range(self) -> Augmentation:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area: [{low}, {high}] - write 0 < least <= most <= 1")
        return self


class SupervisedOptimiser(Section):
    """AdamW and its schedule."""

    lr: Annotated[Real, Field(gt=0.0)] = 1e-3
    """Peak learning rate."""
    landmark_lr_scale: Annotated[Real, Field(gt=0.0)] = 1.0
    """Share of the learning rate for the landmark CNN; below 1 its landmarks settle sooner."""
    min_lr: Annotated[Real, Field(ge=0.0)] = 1e-6
    """Learning rate at the end of the cosine."""
    warmup: DurationField = Duration(amount=5.0, unit="epochs")
    """Linear warm-up from 0."""
    weight_decay: Annotated[Real, Field(ge=0.0)] = 0.1
    """Weight decay; none on biases and norms."""


class FinetuneConfig(Job):
    """Supervised training of Part fViT from scratch (stage 1)."""

    duration: DurationField = Duration(amount=34.0, unit="epochs")
    """Length of the run, in epochs or steps."""
    batch_size: Positive = 480
    """Faces in one optimiser step, over all workers and micro-batches."""
    margin: Margin = Margin()
    """Loss."""
    augmentation: Augmentation = Augmentation()
    """View."""
    optim: SupervisedOptimiser = SupervisedOptimiser()
    """Optimiser."""
