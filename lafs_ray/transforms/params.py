"""The random parameters of a face's views, sampled with numpy, apart from the images.

A record's parameters depend on (seed, epoch, shard, key) alone: every record has a generator of its own
(`record_seeds`), so neither its batch, nor the worker, nor the device can change its augmentation. Of the 0.06 ms that
sampling takes, numpy's normal numbers for the landmarks are half, and 2 µs are the generator. Shape letters: B images,
V views (the global ones first), N landmarks, n tokens of a local view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config.train import TokenFeatures
from lafs_ray.config.views import LandmarkSource
from lafs_ray.transforms.record_seeds import record_generators

CROP_ATTEMPTS = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# The columns of one view's uniform numbers; their order is part of every run's random stream.
_AREA = slice(0, CROP_ATTEMPTS)
_ASPECT = slice(CROP_ATTEMPTS, 2 * CROP_ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(20, 28)
_FACTORS = slice(28, 32)
_ORDER = slice(32, 36)
_NUM_UNIFORMS = 36

# Of a float32 that numpy draws.
_UNIFORM_BITS = 24

Records = NDArray[np.integer[Any]]
"""One number for every record of a batch, [B]: its epoch, shard or key."""


@dataclass(frozen=True)
class ViewSettings:
    """How views are sampled and transformed; names are those of the configuration's keys.

    Attributes:
        image_size: side of images and views, in pixels.
        patch_size: side p of a patch, in pixels.
        token_features: numbers of a token: `pixels` of its patch, or `orientations`.
        num_landmarks: N; with source `grid` the number of cells, (image_size / p)².
        num_global: views that keep all landmarks; the teacher sees these.
        num_local: views that keep `local_tokens` landmarks.
        crop_area: least and greatest share of the image's area that a global view covers.
        crop_aspect: least and greatest width / height of the crop, log-uniform.
        local_crop_area: `crop_area` of local views. Reference: its option is ignored, all views have the share of
            global ones.
        flip: probability of a horizontal mirror.
        opposite_flips: mirror the second global view where the first is not mirrored.
        jitter: probability of color jitter.
        brightness: factor is uniform in 1 ± this.
        contrast: factor is uniform in 1 ± this.
        saturation: factor is uniform in 1 ± this.
        hue: shift is uniform in ± this share of the color circle.
        gray: probability of losing all color.
        blur: probability of Gaussian blur for global view 1, other global views, local views.
        blur_sigma_px: least and greatest standard deviation of the blur.
        solarize: probability of solarizing; only global views after the first.
        source: where landmarks come from. `per_view`: the CNN sees every clean view, as in the reference; `per_image`:
            it sees the whole image and its mirror image, and landmarks move with each crop; `cached`: predicted before
            on the whole image, those of its mirror image are the nearest ones; `template`: fixed positions of the whole
            image and of its mirror image, which move with each crop;
            `grid`: no landmarks, plain patches.
        noise_px: standard deviation of the landmarks' perturbation.
        local_tokens: n, landmarks sampled for a local view.
        shuffle: keep a local view's landmarks in the order sampled; otherwise ascending.
        replacement: whether a local view may sample a landmark twice. Reference: yes.
    """

    image_size: int
    patch_size: int
    token_features: TokenFeatures
    num_landmarks: int
    num_global: int
    num_local: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    local_crop_area: tuple[float, float]
    flip: float
    opposite_flips: bool
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray: float
    blur: tuple[float, float, float]
    blur_sigma_px: tuple[float, float]
    solarize: float
    source: LandmarkSource
    noise_px: float
    local_tokens: int
    shuffle: bool
    replacement: bool

    def __post_init__(self) -> None:
        assert self.local_tokens <= self.num_landmarks, self
        if self.source == "grid":
            assert self.image_size % self.patch_size == 0, self
            assert math.isqrt(self.local_tokens) ** 2 == self.local_tokens, self

    @property
    def num_views(self) -> int:
        """V, global and local views of an image."""
        return self.num_global + self.num_local

    @property
    def local_size(self) -> int:
        """Side of a local view in pixels: smaller than the image only for plain grid patches."""
        if self.source == "grid":
            return self.patch_size * math.isqrt(self.local_tokens)
        return self.image_size


@dataclass(frozen=True)
class ViewParams:
    """Everything random about the views of a batch of B images.

    Attributes:
        boxes: int32 [B, V, 4], the crop as (top, left, height, width) in pixels of the image.
        flips: bool [B, V], mirror the view.
        jitters: bool [B, V], apply the four color operations.
        jitter_factors: float32 [B, V, 4], of brightness, contrast, saturation, and the hue shift as a share of the
            circle.
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
        """Return the parameters of some images of the batch."""
        return ViewParams(**{name: value[rows] for name, value in vars(self).items()})

    def views(self, views: slice) -> ViewParams:
        """Return the parameters of some views of every image; `local_indices` stays whole."""
        chosen: dict[str, NDArray[Any]] = {
            name: value[:, views] for name, value in vars(self).items() if name != "local_indices"
        }
        return replace(self, **chosen)


def sample_view_params(settings: ViewSettings, seed: int, epoch: Records, shard: Records, key: Records) -> ViewParams:
    """Sample the views of B records, each a pure function of (seed, epoch, shard, key).

    Args:
        settings: distributions of the parameters.
        seed: the run's seed, ≥ 0.
        epoch: [B], ≥ 0.
        shard: [B], number of the record's file, ≥ 0.
        key: [B], number of the record in its file, ≥ 0.
    """
    count, views = len(key), settings.num_views
    landmarks = 0 if settings.source == "grid" else settings.num_landmarks
    uniforms = np.empty((count, views, _NUM_UNIFORMS))
    local_uniforms = np.empty((count, settings.num_local, landmarks), dtype=np.float32)
    noise = np.empty((count, views, landmarks, 2), dtype=np.float32)
    for row, generator in enumerate(record_generators(seed, epoch, shard, key)):
        generator.random(out=uniforms[row])
        generator.random(dtype=np.float32, out=local_uniforms[row])
        generator.standard_normal(dtype=np.float32, out=noise[row])
    noise *= np.float32(settings.noise_px)
    factors, order = _jitter(settings, uniforms)
    return ViewParams(
        boxes=_crop_boxes(settings, uniforms),
        flips=_flips(settings, uniforms),
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
    """Sample torchvision's RandomResizedCrop: the first of ten tries that fits into the image."""
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
    """Return height and width of the largest central crop of allowed aspect."""
    size = settings.image_size
    least, greatest = settings.crop_aspect
    if least > 1:
        return round(size / least), size
    if greatest < 1:
        return size, round(size * greatest)
    return size, size


def _flips(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Sample which views to mirror."""
    flips: NDArray[np.bool_] = uniforms[..., _FLIP] < settings.flip
    if settings.opposite_flips and settings.num_global > 1:
        flips[:, 1] = ~flips[:, 0]
    return flips


def _jitter(settings: ViewSettings, uniforms: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Sample the factors of the four color operations and their order."""
    spread = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    factors = center + spread * (2 * uniforms[..., _FACTORS] - 1)
    factors[..., :HUE] = factors[..., :HUE].clip(min=0)
    order = np.argsort(uniforms[..., _ORDER], axis=-1, kind="stable")
    return factors.astype(np.float32), order.astype(np.int8)


def _blur_sigma(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sample the standard deviation of every view's blur, 0 for none."""
    first, other, local = settings.blur
    num_other = max(settings.num_global - 1, 0)
    probability = np.array([first] * min(settings.num_global, 1) + [other] * num_other)
    probability = np.concatenate((probability, np.full(settings.num_local, local)))
    least, greatest = settings.blur_sigma_px
    sigma = least + (greatest - least) * uniforms[..., _SIGMA]
    return np.where(uniforms[..., _BLUR] < probability, sigma, 0).astype(np.float32)


def _solarizes(settings: ViewSettings, uniforms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Sample which views to solarize: only global views after the first."""
    view = np.arange(settings.num_views)
    allowed = (view > 0) & (view < settings.num_global)
    return allowed & (uniforms[..., _SOLARIZE] < settings.solarize)


def _local_indices(settings: ViewSettings, uniforms: NDArray[np.float32]) -> NDArray[np.int64]:
    """Sample the landmarks of every local view, from N uniform numbers per view."""
    count = settings.local_tokens
    if uniforms.shape[-1] == 0:
        return np.empty((*uniforms.shape[:-1], 0), dtype=np.int64)
    if settings.replacement:
        # float32 numbers below 1 can round up to N in the product.
        indices = (uniforms[..., :count] * settings.num_landmarks).astype(np.int64)
        indices = np.minimum(indices, settings.num_landmarks - 1)
    else:
        indices = smallest(uniforms, count)
    return indices if settings.shuffle else np.sort(indices, axis=-1)


def smallest(numbers: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the first `count` of `np.argsort(…, kind="stable")` along the last axis.

    Sorts integers, each a number and its place: a quarter of the time of a partition by `np.argpartition`.

    Args:
        numbers: as numpy draws float32 in [0, 1): multiples of 2⁻²⁴.
        count: of the indices.
    """
    length = numbers.shape[-1]
    places = (length - 1).bit_length()
    dtype = np.uint32 if places <= 32 - _UNIFORM_BITS else np.uint64
    keys = (numbers * np.float32(1 << _UNIFORM_BITS)).astype(dtype)
    keys <<= dtype(places)
    keys |= np.arange(length, dtype=dtype)
    keys.sort(axis=-1)
    found: NDArray[np.int64] = (keys[..., :count] & dtype((1 << places) - 1)).astype(np.int64)
    return found
