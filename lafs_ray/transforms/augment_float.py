"""Crop and appearance of many views at once, in float32 on any device: the readable definitions.

All functions take [M, 3, H, W] (M = B·V views). Where a color operation is sampled for some views only, views are
regrouped so that it runs on a contiguous slice: no Python loop over views and no work on other views. Every operation
treats each view by itself, so results do not depend on which views share a call, bit by bit. CPUs use `augment_uint8`.
Ours: values stay float32 in 0…255 from crop to patch. The reference rounds to 8 bits after every operation; we round
where a decision depends on it (crop, contrast pivot, solarize threshold) and clamp where it clamps. Tests hold the
difference to PIL below 3 of 255 in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.transforms.augment_uint8 import LUMA, SOLARIZE_THRESHOLD, gaussian_weights
from lafs_ray.transforms.params import HUE, ViewParams

_GRAY = HUE + 1
_NONE = _GRAY + 1

_Key = TypeVar("_Key", bound=np.number[Any])


def crop_views(images: Tensor, boxes: NDArray[np.int32], flips: NDArray[np.bool_], size: int) -> Tensor:
    """Crop, resize bicubically to `size` and flip, V views per image, by products with matrices.

    PIL's `crop(box).resize((size, size), BICUBIC)`: a = -0.5, weights renormalized at the box's edge, widened when
    shrinking, rounded to 8 bits after the horizontal and the vertical pass.

    Args:
        images: uint8 [B, S, S, 3].
        boxes: int32 [B, V, 4], (top, left, height, width) in pixels.
        flips: bool [B, V].
        size: side of the views, in pixels.

    Returns:
        float32 [B·V, 3, size, size], whole numbers in 0…255.
    """
    batch, views = flips.shape
    source = images.shape[1]
    top, left, height, width = (boxes[..., side] for side in range(4))
    columns = bicubic_weights(left, width, source, size)
    columns[flips] = columns[flips][:, ::-1]
    rows = bicubic_weights(top, height, source, size)
    across = torch.from_numpy(columns).to(images.device, torch.float32).unsqueeze(2)
    down = torch.from_numpy(rows).to(images.device, torch.float32).unsqueeze(2)
    planes = images.permute(0, 3, 1, 2).to(torch.float32).unsqueeze(1)
    narrowed = (planes @ across.transpose(-1, -2)).round_().clamp_(0, 255)
    crops = (down @ narrowed).round_().clamp_(0, 255)
    return crops.reshape(batch * views, 3, size, size)


def bicubic_weights(start: NDArray[np.int32], length: NDArray[np.int32], source: int, size: int) -> NDArray[np.float64]:
    """Return matrices [..., size, source] that resize pixels start…start+length-1 to `size` pixels.

    Definition: row i holds k((x + ½ - c) / s) for every pixel x in the range, divided by its sum,
    where c = start + (i + ½)·length/size, s = max(length/size, 1) and k is Keys' cubic, a = -½.
    """
    scale = (length / size)[..., None, None]
    first = start[..., None, None]
    pixel = np.arange(source)
    center = first + (np.arange(size)[:, None] + 0.5) * scale
    distance = np.abs((pixel + 0.5 - center) / np.maximum(scale, 1))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    weights = np.where((first <= pixel) & (pixel < first + length[..., None, None]), weights, 0)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)


def change_appearance(views: Tensor, params: ViewParams) -> Tensor:
    """Apply color jitter in each view's own order, then gray, blur and solarize.

    Args:
        views: float32 [M, 3, H, W] in 0…255; not modified.
        params: of B images and V views with B·V = M.

    Returns:
        float32 [M, 3, H, W] in 0…255.
    """
    jitters, grays = params.jitters.reshape(-1, 1), params.grays.reshape(-1, 1)
    order = params.jitter_order.reshape(-1, 4)
    operations = np.hstack((np.where(jitters, order, _NONE), np.where(grays, _GRAY, _NONE)))
    factors = torch.from_numpy(params.jitter_factors.reshape(-1, 4)).to(views.device)
    sigma = params.blur_sigma_px.reshape(-1)
    group = _SortedViews(views)
    for step in range(operations.shape[1]):
        kinds = group.sort(operations[:, step])
        for kind, operation in enumerate(_OPERATIONS):
            start, end = np.searchsorted(kinds, (kind, kind + 1))
            if start < end:
                amount = factors[group.rows[start:end], min(kind, HUE)].reshape(-1, 1, 1, 1)
                operation(group.views[start:end], amount)
    descending = -group.sort(-sigma)
    num_blurred = np.count_nonzero(descending)
    if num_blurred:
        blur_(group.views[:num_blurred], descending[:num_blurred])
    group.sort(np.arange(len(views)))
    for row in np.flatnonzero(params.solarizes):
        solarize_(group.views[row])
    return group.views


class _SortedViews:
    """Views in a changing order; `rows` are their original indices.

    Two buffers alternate, so that the views given are not modified. Tried on CPU, both no faster:
    one view after another, and sorting once by the whole order of operations.
    """

    def __init__(self, views: Tensor) -> None:
        self.rows = np.arange(len(views))
        self.views = views
        self._buffers = [torch.empty_like(views), torch.empty_like(views)]

    def sort(self, keys: NDArray[_Key]) -> NDArray[_Key]:
        """Sort views by keys [M], which are in the original order; return the sorted keys."""
        order = np.argsort(keys[self.rows], kind="stable")
        index = torch.from_numpy(order).to(self.views.device)
        # index_select copies whole views, 20 times faster than views[index] on CPU.
        self.views = torch.index_select(self.views, 0, index, out=self._buffers[0])
        self._buffers.reverse()
        self.rows = self.rows[order]
        return keys[self.rows]


def luma(views: Tensor) -> Tensor:
    """Return PIL's gray value of every pixel, [M, 1, H, W], rounded to whole numbers."""
    red, green, blue = views.chunk(3, dim=1)
    gray = red * LUMA[0]
    return gray.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).round_()


def brighten_(views: Tensor, factor: Tensor) -> None:
    """Multiply by the factor [M, 1, 1, 1], in place."""
    views.mul_(factor).clamp_(max=255)


def contrast_(views: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the view's mean gray, in place."""
    # A sum of at most 256×256 integers below 256 is exact in float32 in every order, so the pivot, which the reference
    # rounds too, is the same on every device and in every batch.
    height, width = views.shape[-2:]
    assert height * width <= 2**16, (height, width)
    pivot = luma(views).sum(dim=(1, 2, 3), keepdim=True).div_(height * width).add_(0.5).floor_()
    views.mul_(factor).add_(pivot * (1 - factor)).clamp_(0, 255)


def saturate_(views: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the pixel's own gray, in place."""
    gray = luma(views).mul_(1 - factor)
    views.mul_(factor).add_(gray).clamp_(0, 255)


def make_gray_(views: Tensor, _factor: Tensor) -> None:
    """Replace all channels by the luma, in place."""
    views.copy_(luma(views))


def shift_hue_(views: Tensor, shift: Tensor) -> None:
    """Shift the hue by a fraction of the circle, keeping HSV's value and saturation, in place.

    Definition for a pixel: (h, s, v) = rgb_to_hsv(r, g, b); rgb = hsv_to_rgb(h + shift, s, v).
    In sextants and with channels scaled to 0…1 between their least and greatest, a hue is 1 + g + b - r away from red,
    towards green where g > b. That avoids the masks of the usual formula, which on CPU cost more than the rest.
    """
    red, green, blue = views.unbind(1)
    top = torch.maximum(red, green)
    low = torch.minimum(red, green)
    chroma = torch.maximum(top, blue, out=top).sub_(torch.minimum(low, blue, out=low))
    # A gray pixel may get any hue: its chroma, 0, multiplies the result.
    hue = torch.add(green, blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-6)).add_(1)
    hue = torch.copysign(hue, green - blue).add_(6 * shift.squeeze(1))
    hue.sub_((hue * (1 / 6)).floor_().mul_(6))
    # The fraction of chroma that each channel has above `low`, as a function of the hue in 0…6.
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    views.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))


# In the order of their numbers.
_OPERATIONS: tuple[Callable[[Tensor, Tensor], None], ...] = (brighten_, contrast_, saturate_, shift_hue_, make_gray_)


def blur_(views: Tensor, sigma_px: NDArray[np.float32]) -> None:
    """Blur with a Gaussian, edge pixels repeated, in place.

    Taps are added in pairs, each only to the views whose kernel includes it: 2 × 7 passes for the widest kernel, a
    third of the time of banded matrices. Reference: PIL approximates the Gaussian of the same standard deviation by
    three box blurs.

    Args:
        views: float32 [M, 3, H, W].
        sigma_px: [M], descending, > 0.
    """
    assert (np.diff(sigma_px) <= 0).all(), sigma_px
    taps, reach = gaussian_weights(sigma_px)
    weights = torch.from_numpy(taps.T.astype(np.float32)).to(views.device)
    weights = weights.reshape(*weights.shape, 1, 1, 1)
    counts = [int(np.count_nonzero(reach >= tap)) for tap in range(taps.shape[1])]
    for dim in (3, 2):
        _blur_along(views, dim, weights, counts)


def _blur_along(views: Tensor, dim: int, weights: Tensor, counts: list[int]) -> None:
    """Convolve one dimension with symmetric kernels, in place.

    Args:
        views: [M, 3, H, W].
        dim: 2 or 3.
        weights: [taps, M, 1, 1, 1], from the center outwards.
        counts: for every tap, how many of the first views have it.
    """
    length, reach = views.shape[dim], len(counts) - 1
    margins = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    padded = F.pad(views, margins, mode="replicate")
    views.mul_(weights[0])
    for tap in range(1, reach + 1):
        count = counts[tap]
        before = padded[:count].narrow(dim, reach - tap, length)
        after = padded[:count].narrow(dim, reach + tap, length)
        views[:count].add_((before + after).mul_(weights[tap, :count]))


def solarize_(views: Tensor) -> None:
    """Invert what 8 bits would store as 128 or more, in place."""
    torch.where(views >= SOLARIZE_THRESHOLD - 0.5, 255 - views, views, out=views)
