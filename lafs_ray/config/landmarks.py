"""Settings of the regression of a landmark CNN on given landmarks: without identity labels, in the place of stage 1."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config.data import Data
from lafs_ray.config.loader import Duration, DurationField, Real, RealPair, Section, Tuning
from lafs_ray.config.paths import AbsolutePath
from lafs_ray.config.train import Model, Positive, Rate, TrainConfig


class RegressionData(Data):
    """The faces to train on, and those held back to measure the error."""

    held_back: Annotated[Real, Field(ge=0.0, lt=1.0)] = 0.05
    """Fraction of the images that is not trained on, random by run.seed; jobs/landmark_error.py measures the error on
    them."""


class RegressionModel(Model):
    """The landmark CNN; settings of the transformer have no effect here."""

    landmark_scaling: Literal["span", "direct"] = "direct"
    """direct: landmarks are the head's numbers; span: they are scaled to 0…111 pixels in each face, as published, which
    misplaces the outermost ones. The runs that use the CNN need the same value."""


class GivenLandmarks(Section):
    """The landmarks to learn."""

    cache: AbsolutePath | None = None
    """Folder of cached landmarks of the set, required without data.mix: of another tool or of synthetic faces
    (jobs/cache_landmarks.py --from), or of another landmark CNN."""


class RegressionAugmentation(Section):
    """View of a face; never mirrored, as mirrored landmarks have other numbers."""

    crop_area: RealPair = (0.4, 1.0)
    """Range of the crop's area, as a fraction of the image; that of pretraining's views, which the CNN will see."""
    jitter: Rate = 0.4
    """Strength of brightness, contrast and saturation jitter."""
    gray: Rate = 0.1
    """Probability of grayscale."""
    blur: Rate = 0.2
    """Probability of Gaussian blur of 0.1 to 2 pixels."""

    @model_validator(mode="after")
    def _area_is_a_range(self) -> RegressionAugmentation:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area: [{low}, {high}] - write 0 < least <= most <= 1")
        return self


class RegressionOptimizer(Section):
    """AdamW and its schedule."""

    lr: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 2e-3
    """Peak learning rate, not scaled by the batch."""
    min_lr: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 1e-6
    """Final learning rate of the cosine."""
    warmup: DurationField = Duration(amount=0.05, unit="run")
    """Linear warm-up from 0."""
    weight_decay: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.05
    """Weight decay; none on biases and norms."""


class LandmarkConfig(TrainConfig):
    """Regression of a landmark CNN."""

    data: RegressionData
    """The faces."""
    model: RegressionModel = RegressionModel()
    """The landmark CNN."""
    landmarks: Annotated[GivenLandmarks, Tuning.DEFINES_LOSS] = GivenLandmarks()
    """Landmarks to learn."""
    duration: DurationField = Duration(amount=30.0, unit="epochs")
    """Length of the run, in epochs or steps."""
    batch_size: Positive = 256
    """Global batch: faces in one optimizer step, over all workers and micro-batches."""
    augmentation: Annotated[RegressionAugmentation, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = RegressionAugmentation()
    """View."""
    optim: RegressionOptimizer = RegressionOptimizer()
    """Optimizer."""

    @model_validator(mode="after")
    def _landmarks_are_given(self) -> LandmarkConfig:
        self.data.refuse_cache(self.landmarks.cache)
        self.data.require_landmarks(self.landmarks.cache)
        return self

    @model_validator(mode="after")
    def _has_no_embedding(self) -> LandmarkConfig:
        if self.online_eval.enabled:
            raise ValueError("online_eval: a landmark CNN embeds no faces; leave it out")
        if self.compute.compile:
            raise ValueError("compute.compile: there is no transformer to compile; set it to false")
        return self
