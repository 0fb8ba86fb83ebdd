"""The random draws behind the views of a face, made with numpy, apart from the images.

A record's draws depend on (seed, epoch, shard, key) alone: every record has a generator of its own,
so neither the batch it travels in, nor the worker, nor the device can change its augmentation
(DESIGN.md, law 1). The price is one generator per record, 20 µs of the 0.15 ms that draws cost.
Shape letters: B images, V views (the global ones first), N landmarks, n tokens of a local view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CROP_ATTEMPTS = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# The columns of one view's uniform numbers; the order is part of every run's random stream.
_AREA = slice(0, CROP_ATTEMPTS)
_ASPECT = slice(CROP_ATTEMPTS, 2 * CROP_ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(20, 28)
_FACTORS = slice(28, 32)
_ORDER = slice(32, 36)
_NUM_UNIFORMS = 36

Records = NDArray[np.integer[Any]]
"""One number of every record of a batch, [B]: its epoch, shard or key."""

LandmarkSource = Literal["per_view", "per_image", "cached", "grid"]


@dataclass(frozen=True)
class ViewSettings:
    """How views are drawn and cut; the defaults are LAFS pretraining (METHOD.md, Views).

    Attributes:
        image_size: side of images and views, in pixels.
        patch_size: side p of a patch, in pixels.
        num_landmarks: N; with `landmark_source="grid"` the number of cells, (image_size / p)².
        num_global: views that keep all landmarks; the teacher sees these.
        num_local: views that keep `local_tokens` landmarks.
        crop_area: least and greatest share of the image's area that a global view covers.
        local_crop_area: the same for local views. Reference: its option is ignored, all views have
            the share of global ones.
        crop_aspect: least and greatest width / height of the crop, log-uniform.
        flip: probability of a horizontal mirror.
        jitter: probability of color jitter.
        brightness: factor is uniform in 1 ± this.
        contrast: factor is uniform in 1 ± this.
        saturation: factor is uniform in 1 ± this.
        hue: shift is uniform in ± this share of the color circle.
        gray: probability of losing all color.
        blur: probability of Gaussian blur for global view 1, other global views, local views.
        blur_sigma: least and greatest standard deviation of the blur, in pixels.
        solarize: probability of solarizing; only global views after the first.
        landmark_noise_px: standard deviation of the landmarks' perturbation, in pixels.
        local_tokens: n, landmarks drawn for a local view.
        shuffle: keep a local view's landmarks in the order drawn; otherwise ascending.
        replacement: whether a local view may draw a landmark twice. Reference: yes.
        landmark_source: where landmarks come from. `per_view`: the CNN sees every clean view, as
            in the reference; `per_image`: it sees the whole image once and landmarks move with
            each crop; `grid`: no landmarks, plain patches in their places (DINO on faces).
    """

    image_size: int = 112
    patch_size: int = 8
    num_landmarks: int = 196
    num_global: int = 2
    num_local: int = 8
    crop_area: tuple[float, float] = (0.4, 1.0)
    local_crop_area: tuple[float, float] = (0.4, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.2
    landmark_noise_px: float = 5.0
    local_tokens: int = 36
    shuffle: bool = True
    replacement: bool = False
    landmark_source: LandmarkSource = "per_view"

    def __post_init__(self) -> None:
        assert self.local_tokens <= self.num_landmarks, self
        if self.landmark_source == "grid":
            assert self.image_size % self.patch_size == 0, self
            assert math.isqrt(self.local_tokens) ** 2 == self.local_tokens, self

    @property
    def num_views(self) -> int:
        """V, global and local views of an image."""
        return self.num_global + self.num_local

    @property
    def local_size(self) -> int:
        """Side of a local view in pixels: smaller than the image only for plain grid patches."""
        if self.landmark_source == "grid":
            return self.patch_size * math.isqrt(self.local_tokens)
        return self.image_size


def supervised_settings(image_size: int = 112) -> ViewSettings:
    """Settings of the one view of supervised training: area 0.9-1, flip, jitter of 0.1 each.

    Source: METHOD.md, Margin softmax and finetuning.
    """
    return ViewSettings(
        image_size=image_size,
        num_global=1,
        num_local=0,
        crop_area=(0.9, 1.0),
        jitter=1.0,
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        hue=0.1,
        gray=0.0,
        blur=(0.0, 0.0, 0.0),
        solarize=0.0,
        landmark_source="grid",
    )


@dataclass(frozen=True)
class ViewParams:
    """Everything random about the views of a batch.

    Attributes:
        boxes: int32 [B, V, 4], the crop as (top, left, height, width) in pixels of the image.
        flips: bool [B, V], mirror the view.
        jitters: bool [B, V], apply the four color operations.
        jitter_factors: float32 [B, V, 4], of brightness, contrast, saturation, and the hue shift
            as a share of the circle.
        jitter_order: int8 [B, V, 4], the operations in the order of application.
        grays: bool [B, V], remove color.
        blur_sigma_px: float32 [B, V], 0 where there is no blur.
        solarizes: bool [B, V], invert values of 128 and more.
        landmark_noise_px: float32 [B, V, N, 2]; no landmarks (N = 0) where the source is `grid`.
        local_indices: int64 [B, V_l, n], the landmarks that each local view keeps.
    """

    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    jitters: NDArray[np.bool_]
    jitter_factors: NDArray[np.float32]
    jitter_order: NDArray[np.int8]
    grays: NDArray[np.bool_]
    blur_sigma_px: NDArray[np.float32]
    solarizes: NDArray[np.bool_]
    landmark_noise_px: NDArray[np.float32]
    local_indices: NDArray[np.int64]

    def images(self, rows: slice) -> ViewParams:
        """The draws of some images of the batch."""
        return ViewParams(**{name: value[rows] for name, value in vars(self).items()})

    def views(self, views: slice) -> ViewParams:
        """The draws of some views of every image; `local_indices` stays whole."""
        chosen: dict[str, NDArray[Any]] = {
            name: value[:, views] for name, value in vars(self).items() if name != "local_indices"
        }
        return replace(self, **chosen)


def sample_view_params(
    settings: ViewSettings,
    seed: int,
    epoch: Records,
    shard: Records,
    key: Records,
) -> ViewParams:
    """Draw the views of B records, each a pure function of (seed, epoch, shard, key).

    Args:
        settings: what to draw.
        seed: the run's seed, ≥ 0.
        epoch: [B], ≥ 0.
        shard: [B], number of the record's file, ≥ 0.
        key: [B], number of the record in its file, ≥ 0.
    """
    count, views = len(key), settings.num_views
    landmarks = 0 if settings.landmark_source == "grid" else settings.num_landmarks
    local_draws = settings.num_landmarks if landmarks else 0
    uniforms = np.empty((count, views, _NUM_UNIFORMS))
    local_uniforms = np.empty((count, settings.num_local, local_draws), dtype=np.float32)
    noise = np.empty((count, views, landmarks, 2), dtype=np.float32)
    for row, record in enumerate(zip(epoch.tolist(), shard.tolist(), key.tolist(), strict=True)):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *record])))
        generator.random(out=uniforms[row])
        generator.random(dtype=np.float32, out=local_uniforms[row])
        generator.standard_normal(dtype=np.float32, out=noise[row])
    noise *= np.float32(settings.landmark_noise_px)
    factors, order = _jitter(settings, uniforms)
    return ViewParams(
        boxes=_crop_boxes(settings, uniforms),
        flips=uniforms[..., _FLIP] < settings.flip,
        jitters=uniforms[..., _JITTER] < settings.jitter,
        jitter_factors=factors,
        jitter_order=order,
        grays=uniforms[..., _GRAY] < settings.gray,
        blur_sigma_px=_blur_sigma(settings, uniforms),
        solarizes=_solarizes(settings, uniforms),
        landmark_noise_px=noise,
        local_indices=_local_indices(settings, local_uniforms),
    )


def _crop_boxes(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.int32]:
    """RandomResizedCrop as torchvision draws it: the first of ten tries that fits in the square."""
    size = settings.image_size
    shares = [settings.crop_area] * settings.num_global
    shares += [settings.local_crop_area] * settings.num_local
    least, greatest = np.array(shares).T[..., None]
    areas = (least + (greatest - least) * uniforms[..., _AREA]) * size**2
    low, high = (math.log(bound) for bound in settings.crop_aspect)
    aspects = np.exp(low + (high - low) * uniforms[..., _ASPECT])
    widths = np.rint(np.sqrt(areas * aspects))
    heights = np.rint(np.sqrt(areas / aspects))
    fits = (widths > 0) & (widths <= size) & (heights > 0) & (heights <= size)
    first = fits.argmax(axis=-1)[..., None]
    found = np.take_along_axis(fits, first, axis=-1)[..., 0]
    fallback_height, fallback_width = _fallback_crop(settings)
    width = np.where(found, np.take_along_axis(widths, first, -1)[..., 0], fallback_width)
    height = np.where(found, np.take_along_axis(heights, first, -1)[..., 0], fallback_height)
    top = np.floor(uniforms[..., _TOP] * (size - height + 1))
    left = np.floor(uniforms[..., _LEFT] * (size - width + 1))
    top = np.where(found, top, (size - height) // 2)
    left = np.where(found, left, (size - width) // 2)
    return np.stack((top, left, height, width), axis=-1).astype(np.int32)


def _fallback_crop(settings: ViewSettings) -> tuple[int, int]:
    """Height and width of the largest central crop of allowed aspect, where no try fitted."""
    size = settings.image_size
    least, greatest = settings.crop_aspect
    if least > 1:
        return round(size / least), size
    if greatest < 1:
        return size, round(size * greatest)
    return size, size


def _jitter(
    settings: ViewSettings, uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Factors of the four color operations and their random order."""
    spread = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    factors = center + spread * (2 * uniforms[..., _FACTORS] - 1)
    factors[..., :HUE] = factors[..., :HUE].clip(min=0)
    order = np.argsort(uniforms[..., _ORDER], axis=-1, kind="stable")
    return factors.astype(np.float32), order.astype(np.int8)


def _blur_sigma(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Standard deviation of every view's blur, 0 for none."""
    first, other, local = settings.blur
    num_other = max(settings.num_global - 1, 0)
    probability = np.array([first] * min(settings.num_global, 1) + [other] * num_other)
    probability = np.concatenate((probability, np.full(settings.num_local, local)))
    least, greatest = settings.blur_sigma
    sigma = least + (greatest - least) * uniforms[..., _SIGMA]
    return np.where(uniforms[..., _BLUR] < probability, sigma, 0).astype(np.float32)


def _solarizes(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which views to solarize: only global views after the first may be."""
    view = np.arange(settings.num_views)
    allowed = (view > 0) & (view < settings.num_global)
    return allowed & (uniforms[..., _SOLARIZE] < settings.solarize)


def _local_indices(settings: ViewSettings, uniforms: NDArray[np.float32]) -> NDArray[np.int64]:
    """The landmarks of every local view, from N uniform numbers a view."""
    count = settings.local_tokens
    if uniforms.shape[-1] == 0:
        return np.empty((*uniforms.shape[:-1], 0), dtype=np.int64)
    if settings.replacement:
        # float32 numbers below 1 can round up to N in the product.
        indices = (uniforms[..., :count] * settings.num_landmarks).astype(np.int64)
        indices = np.minimum(indices, settings.num_landmarks - 1)
    else:
        indices = stable_argsort(uniforms)[..., :count]
    return indices if settings.shuffle else np.sort(indices, axis=-1)


def stable_argsort(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """`np.argsort(…, kind="stable")` along the last axis, in half its time where ties are rare."""
    order = np.argsort(numbers, axis=-1)
    ascending = np.take_along_axis(numbers, order, axis=-1)
    tied = (ascending[..., 1:] == ascending[..., :-1]).any(axis=-1)
    if tied.any():
        order[tied] = np.argsort(numbers[tied], axis=-1, kind="stable")
    return order
