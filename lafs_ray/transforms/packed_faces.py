"""Faces and the parameters of their views as one row of bytes each, from preprocessing to the training device.

With `crops.device: cuda` a worker samples what is random about the views and the GPU processes pixels. One array of
bytes means one copy to the GPU, whatever is in it; there each field is a view of that memory. What is small but slow to
find out on a GPU is computed by the worker: the coefficients of a color operation, the weights of a blur, and which
landmarks a local view keeps. Shape letters as in `params`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.transforms.augment_uint8 import BLUR_REACH, gaussian_weights
from lafs_ray.transforms.params import CONTRAST, HUE, SATURATION, ViewParams, ViewSettings

PACKED = "packed"
"""Name of the column."""

COLOR_STEPS = 5
"""Four operations of the jitter, then gray."""

# Fields begin at multiples of the widest number, so that bytes can be viewed as numbers.
_ALIGNMENT = 4
_NEUTRAL = (1.0, 0.0, 0.0, 0.0)
_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "bool": torch.bool, "float16": torch.float16}
_DTYPES["float32"] = torch.float32


@dataclass(frozen=True)
class FaceTensors:
    """A batch on the training device.

    Args:
        image: uint8 [B, S, S, 3].
        boxes: int16 [B, V, 4], as in `ViewParams`.
        flips: bool [B, V].
        colors: float32 [B, V, steps, 4], of `augment_float.color_step`.
        kernels: float32 [B, V, taps], of `augment_float.blur`.
        solarizes: bool [B, V].
        global_noise: float32 [B, V_g, N, 2], in pixels.
        local_noise: float32 [B, V_l, n, 2], of the landmarks kept.
        local_indices: int16 [B, V_l, n].
        landmarks: float16 [B, 2, N, 2] of the whole images and of their mirror images, as points of the images in
            pixels; N = 0 unless the source is `cached`.
    """

    image: Tensor
    boxes: Tensor
    flips: Tensor
    colors: Tensor
    kernels: Tensor
    solarizes: Tensor
    global_noise: Tensor
    local_noise: Tensor
    local_indices: Tensor
    landmarks: Tensor


class _Field(NamedTuple):
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]


class PackedLayout:
    """Where the fields of `FaceTensors` lie in a row, for one kind of views.

    Args:
        settings: of the views.
    """

    def __init__(self, settings: ViewSettings) -> None:
        self.settings = settings
        views, side = settings.num_views, settings.image_size
        landmarks, kept = settings.num_landmarks, settings.local_tokens
        if settings.source == "grid":
            landmarks = kept = 0
        cached = landmarks if settings.source == "cached" else 0
        self._taps = math.ceil(BLUR_REACH * settings.blur_sigma_px[1]) + 1
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "image": ("uint8", (side, side, 3)),
            "boxes": ("int16", (views, 4)),
            "flips": ("bool", (views,)),
            "colors": ("float32", (views, COLOR_STEPS, 4)),
            "kernels": ("float32", (views, self._taps)),
            "solarizes": ("bool", (views,)),
            "global_noise": ("float32", (settings.num_global, landmarks, 2)),
            "local_noise": ("float32", (settings.num_local, kept, 2)),
            "local_indices": ("int16", (settings.num_local, kept)),
            "landmarks": ("float16", (2, cached, 2)),
        }
        self._fields: dict[str, _Field] = {}
        start = 0
        for name, (dtype, shape) in shapes.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            self._fields[name] = _Field(start, size, dtype, shape)
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.row_bytes = start

    def pack(
        self, images: NDArray[np.uint8], params: ViewParams, landmarks: NDArray[np.float16] | None = None
    ) -> NDArray[np.uint8]:
        """Return rows uint8 [B, `row_bytes`].

        Args:
            images: uint8 [B, S, S, 3], RGB.
            params: of their views.
            landmarks: [B, 2, N, 2] of the whole images and of their mirror images, as points of the images in pixels,
                exactly if the source is `cached`.
        """
        assert (landmarks is not None) == (self.settings.source == "cached"), self.settings.source
        count, first_local = len(images), self.settings.num_global
        noise, indices = params.landmark_noise_px, params.local_indices
        values: dict[str, NDArray[Any]] = {
            "image": images,
            "boxes": params.boxes,
            "flips": params.flips,
            "colors": color_coefficients(params),
            "kernels": half_kernels(params.blur_sigma_px, self._taps),
            "solarizes": params.solarizes,
            "global_noise": noise[:, :first_local],
            "local_noise": np.take_along_axis(noise[:, first_local:], indices[..., None], axis=2),
            "local_indices": indices,
            "landmarks": np.empty((count, 2, 0, 2), np.float16) if landmarks is None else landmarks,
        }
        rows = np.zeros((count, self.row_bytes), dtype=np.uint8)
        for name, (start, size, dtype, shape) in self._fields.items():
            if size:
                value = np.ascontiguousarray(values[name], dtype=dtype)
                assert value.shape == (count, *shape), (name, value.shape)
                rows[:, start : start + size] = value.reshape(count, -1).view(np.uint8)
        return rows

    def unpack(self, rows: Tensor) -> FaceTensors:
        """Return the fields of rows uint8 [B, `row_bytes`], without a copy."""
        assert rows.shape[1:] == (self.row_bytes,), (rows.shape, self.row_bytes)
        fields = {}
        for name, (start, size, dtype, shape) in self._fields.items():
            numbers = rows[:, start : start + size].view(_DTYPES[dtype])
            fields[name] = numbers.view(len(rows), *shape)
        return FaceTensors(**fields)


def color_coefficients(params: ViewParams) -> NDArray[np.float32]:
    """Return the coefficients of `augment_float.color_step` [B, V, steps, 4] in the order of application."""
    order = params.jitter_order.astype(np.int64)
    factor = np.take_along_axis(params.jitter_factors, order, axis=-1)
    colors = np.empty((*order.shape[:-1], COLOR_STEPS, 4), dtype=np.float32)
    colors[:] = _NEUTRAL
    jitter = colors[..., : COLOR_STEPS - 1, :]
    rest, applies = 1 - factor, params.jitters[..., None]
    jitter[..., 0] = np.where(applies & (order != HUE), factor, 1)
    for column, kind in ((1, SATURATION), (2, CONTRAST)):
        jitter[..., column] = np.where(applies & (order == kind), rest, 0)
    jitter[..., 3] = np.where(applies & (order == HUE), factor, 0)
    colors[params.grays, -1] = (0.0, 1.0, 0.0, 0.0)
    return colors


def half_kernels(sigma_px: NDArray[np.float32], taps: int) -> NDArray[np.float32]:
    """Return the kernels of `augment_float.blur` [..., taps], (1, 0, …) for a standard deviation of 0."""
    flat = sigma_px.reshape(-1)
    kernels = np.zeros((len(flat), taps), dtype=np.float32)
    kernels[:, 0] = 1
    blurred = np.flatnonzero(flat)
    weights, _ = gaussian_weights(flat[blurred])
    kernels[blurred, : weights.shape[1]] = weights
    return kernels.reshape(*sigma_px.shape, taps)
