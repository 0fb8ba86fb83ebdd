"""Settings of the views of pretraining: their landmarks, crops and appearance; defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config.loader import Real, RealPair, RealTriple, Section, Tuning
from lafs_ray.config.paths import AbsolutePath
from lafs_ray.config.train import Count, Positive, Rate

LandmarkSource = Literal["per_view", "per_image", "cached", "template", "grid"]


class PretrainLandmarks(Section):
    """Source of the landmarks, and their augmentation."""

    source: LandmarkSource = "per_view"
    """per_view: predicted on each clean view (reference); per_image: predicted on the whole face and its mirror image
    and mapped into each view; cached: predicted before by lafs cache-landmarks, mirrored views take the nearest;
    template: the same positions in every aligned face, without a landmark CNN; grid: no landmarks, plain patches
    (DINO-face)."""
    weights: str | None = None
    """Stage-1 run or checkpoint (ours or published) with the landmark CNN, or `untrained`; required unless source is
    template or grid, or cache names landmarks of another tool."""
    cache: str | None = None
    """Folder of cached landmarks, of a landmark CNN or of another tool; null: next to the set, the default of
    lafs cache-landmarks."""
    template: AbsolutePath | None = None
    """Positions of source template: a .npy, .csv or .parquet file of x and y in pixels, or a folder of cached
    landmarks, whose mean is taken; null: a square grid from brows to chin."""
    noise_px: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 5.0
    """Standard deviation of the landmark perturbation, in pixels."""
    local_tokens: Annotated[Positive, Tuning.MUTABLE] = 36
    """Landmarks sampled for a local view."""
    shuffle: Annotated[bool, Tuning.MUTABLE] = True
    """Whether a local view's landmarks are in random order (else ascending)."""
    replacement: Annotated[bool, Tuning.MUTABLE] = False
    """Whether a local view samples landmarks with replacement, as the released code does."""


class Views(Section):
    """Crops and appearance of global and local views; the paper's numbers."""

    num_local: Count = 8
    """Local views of each face, in addition to two global views."""
    crop_area: RealPair = (0.4, 1.0)
    """Range of a global view's crop area, as a fraction of the image."""
    crop_aspect: RealPair = (3 / 4, 4 / 3)
    """Range of the aspect ratio of crops."""
    local_crop_area: RealPair = (0.4, 1.0)
    """Range of a local view's crop area; the released code ignores its own option and uses crop_area."""
    flip: Rate = 0.5
    """Probability of a horizontal flip."""
    opposite_flips: bool = False
    """Whether the second global view is flipped where the first is not, whatever flip says of the second. For
    distillation: the frozen network's embeddings of a face then add up to the same, whichever was flipped."""
    jitter: Rate = 0.8
    """Probability of color jitter."""
    brightness: Rate = 0.4
    """Strength of brightness jitter."""
    contrast: Rate = 0.4
    """Strength of contrast jitter."""
    saturation: Rate = 0.2
    """Strength of saturation jitter."""
    hue: Annotated[Real, Field(ge=0.0, le=0.5)] = 0.1
    """Strength of hue jitter, as a fraction of the color circle."""
    gray: Rate = 0.2
    """Probability of grayscale."""
    blur: RealTriple = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur in the first global, the second global and local views."""
    blur_sigma_px: RealPair = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    solarize: Rate = 0.2
    """Probability of solarization (threshold 128) of the second global view."""

    def local_tokens(self, landmarks: PretrainLandmarks) -> int:
        """Return n of a local view; where there is none, 1, which every model has positions for."""
        return landmarks.local_tokens if self.num_local else 1

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Views:
        for name in ("crop_area", "local_crop_area", "crop_aspect", "blur_sigma_px"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: [{low}, {high}] must be positive and in ascending order")
            if name.endswith("area") and high > 1:
                raise ValueError(f"{name}: {high} is more than the whole image; at most 1")
        if not all(0 <= p <= 1 for p in self.blur):
            raise ValueError(f"blur: {list(self.blur)} - probabilities lie between 0 and 1")
        return self


class Crops(Section):
    """Where views are transformed."""

    device: Literal["cpu", "cuda"] = "cpu"
    """cpu: in Ray Data actors; cuda: in the training step, on the GPU."""
