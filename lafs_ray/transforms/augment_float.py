"""Crop and appearance of many views at once, in float32 on any device: the readable definitions.

All functions take [M, 3, H, W] (M = B·V views), and each is the same few operators whatever M is: what was sampled for
some views only is a neutral number for the others, so that a GPU launches as much for one image as for 256, and
torch.compile makes one code of it. Every operation treats each view by itself. CPUs use `augment_uint8`. Ours: values
stay float32 in 0…255 from crop to patch. The reference rounds to 8 bits after every operation; we round where a
decision depends on it (crop, contrast pivot, solarize threshold) and clamp where it clamps. Tests hold the difference
to PIL below 3 of 255 in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lafs_ray.transforms.augment_uint8 import LUMA, SOLARIZE_THRESHOLD


def crop_views(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Crop, resize bicubically to `size` and flip, V views per image, by two products with matrices.

    PIL's `crop(box).resize((size, size), BICUBIC)`: a = -0.5, weights renormalized at the box's edge, widened when
    shrinking, rounded to 8 bits after the horizontal and the vertical pass.

    Args:
        images: uint8 [B, S, S, 3].
        boxes: integers [B, V, 4], (top, left, height, width) in pixels.
        flips: bool [B, V].
        size: side of the views, in pixels.

    Returns:
        float32 [B·V, 3, size, size], whole numbers in 0…255.
    """
    batch, views = flips.shape
    source = images.shape[1]
    top, left, height, width = boxes.unbind(-1)
    across = bicubic_weights(left, width, source, size, flips)
    down = bicubic_weights(top, height, source, size)
    # All views of an image in one product, so that the image is not copied for each: [3·S, S] · [S, V·size].
    planes = images.permute(0, 3, 1, 2).to(torch.float32).reshape(batch, 3 * source, source)
    narrowed = (planes @ across.reshape(batch, views * size, source).mT).round_().clamp_(0, 255)
    narrowed = narrowed.view(batch, 3, source, views, size).permute(0, 3, 2, 1, 4)
    narrowed = narrowed.reshape(batch * views, source, 3 * size)
    crops = (down.view(batch * views, size, source) @ narrowed).round_().clamp_(0, 255)
    return crops.view(batch * views, size, 3, size).transpose(1, 2).contiguous()


def bicubic_weights(
    start: Tensor,
    length: Tensor,
    source: int,
    size: int,
    flips: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return matrices [..., size, source] that resize pixels start…start+length-1 to `size` pixels.

    Definition: row i holds k((x + ½ - c) / s) for every pixel x in the range, divided by its sum,
    where c = start + (i + ½)·length/size, s = max(length/size, 1) and k is Keys' cubic, a = -½.

    Args:
        start: integers [...].
        length: integers [...].
        source: number of pixels.
        size: number of pixels afterwards.
        flips: bool [...], where the rows are reversed.
        dtype: of the computation and the result; float32 is off by 2e-5.
    """
    pixel = torch.arange(source, dtype=dtype, device=start.device)
    row = torch.arange(size, dtype=dtype, device=start.device) + 0.5
    if flips is not None:
        row = torch.where(flips.unsqueeze(-1), size - row, row)
    length = length.to(dtype).unsqueeze(-1)
    scale = length / size
    # Counted from the box's edge, where float32 has the most digits.
    offset = pixel - start.to(dtype).unsqueeze(-1)
    distance = ((offset + 0.5).unsqueeze(-2) - (row * scale).unsqueeze(-1)).abs() / scale.clamp(min=1).unsqueeze(-1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    inside = (offset >= 0) & (offset < length)
    weights = weights * inside.unsqueeze(-2)
    return weights / weights.sum(dim=-1, keepdim=True)


def change_appearance(
    views: Tensor, colors: Tensor, kernels: Tensor, solarizes: Tensor, operations: Operations | None = None
) -> Tensor:
    """Apply color jitter in each view's own order, then gray, blur and solarize.

    Args:
        views: float32 [M, 3, H, W] in 0…255; not modified.
        colors: float32 [M, steps, 4], of `color_step`, in the order of application.
        kernels: float32 [M, taps], of `blur`.
        solarizes: bool [M].
        operations: compiled ones, in the place of this module's.

    Returns:
        float32 [M, 3, H, W] in 0…255.
    """
    operations = operations or Operations()
    for step in colors.unbind(1):
        views = operations.color_step(views, step)
    return solarize(blur(views, kernels, operations.blur_along), solarizes)


def color_step(views: Tensor, color: Tensor) -> Tensor:
    """Apply one color operation to each view, not the same one to all.

    Args:
        views: float32 [M, 3, H, W] in 0…255.
        color: float32 [M, 4], (a, b, c, h): a·x + b·luma(x) + c·mean luma, clamped; then the hue shift h, as a share of
            the circle. With factor f, brightness is (f, 0, 0, 0), contrast (f, 0, 1 - f, 0), saturation (f, 1 - f, 0,
            0), hue (1, 0, 0, h), gray (0, 1, 0, 0), and (1, 0, 0, 0) changes no bit.
    """
    own, gray, mean, shift = color.reshape(-1, 4, 1, 1, 1).unbind(1)
    height, width = views.shape[-2:]
    # A sum of at most 256×256 integers below 256 is exact in float32 in every order, so the mean, which the reference
    # rounds too, is the same on every device and in every batch.
    assert height * width <= 2**16, (height, width)
    lumas = luma(views)
    pivot = lumas.sum(dim=(1, 2, 3), keepdim=True).div(height * width).add(0.5).floor()
    changed = (views * own + lumas * gray + pivot * mean).clamp(0, 255)
    return torch.where(shift == 0, changed, shift_hue(changed, shift))


def luma(views: Tensor) -> Tensor:
    """Return PIL's gray value of every pixel, [M, 1, H, W], rounded to whole numbers."""
    red, green, blue = views.chunk(3, dim=1)
    return (red * LUMA[0]).add(green, alpha=LUMA[1]).add(blue, alpha=LUMA[2]).round()


def shift_hue(views: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by a fraction of the circle [M, 1, 1, 1], keeping HSV's value and saturation.

    Definition for a pixel: (h, s, v) = rgb_to_hsv(r, g, b); rgb = hsv_to_rgb(h + shift, s, v).
    In sextants and with channels scaled to 0…1 between their least and greatest, a hue is 1 + g + b - r away from red,
    towards green where g > b. That avoids the masks of the usual formula.
    """
    red, green, blue = views.unbind(1)
    top, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = top - low
    # A gray pixel may get any hue: its chroma, 0, multiplies the result.
    hue = (green + blue - red - low) / chroma.clamp(min=1e-6) + 1
    hue = torch.copysign(hue, green - blue) + 6 * shift.squeeze(1)
    hue = hue - (hue * (1 / 6)).floor() * 6
    # The fraction of chroma that each channel has above `low`, as a function of the hue in 0…6.
    shares = torch.stack(((hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()), dim=1)
    return shares.clamp(0, 1) * chroma.unsqueeze(1) + low.unsqueeze(1)


def blur(views: Tensor, kernels: Tensor, along: Callable[[Tensor, Tensor, int], Tensor] | None = None) -> Tensor:
    """Convolve rows and columns with a symmetric kernel, edge pixels repeated.

    Reference: PIL approximates the Gaussian of the same standard deviation by three box blurs.

    Args:
        views: float32 [M, 3, H, W].
        kernels: float32 [M, taps], from the center outwards; (1, 0, …) changes no bit.
        along: `blur_along`, perhaps compiled.
    """
    along = along or blur_along
    return along(along(views, kernels, 3), kernels, 2)


def blur_along(views: Tensor, kernels: Tensor, dim: int) -> Tensor:
    """Convolve dimension 2 or 3 as `blur`; by itself, as one kernel for both would compute the first 13 times."""
    reach, length = kernels.shape[1] - 1, views.shape[dim]
    weights = kernels.t().reshape(-1, len(kernels), 1, 1, 1)
    margins = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    padded = F.pad(views, margins, mode="replicate")
    blurred = views * weights[0]
    for tap in range(1, reach + 1):
        pair = padded.narrow(dim, reach - tap, length) + padded.narrow(dim, reach + tap, length)
        blurred = blurred + pair * weights[tap]
    return blurred


def solarize(views: Tensor, solarizes: Tensor) -> Tensor:
    """Invert what 8 bits would store as 128 or more, where `solarizes` [M]."""
    inverts = solarizes.view(-1, 1, 1, 1) & (views >= SOLARIZE_THRESHOLD - 0.5)
    return torch.where(inverts, 255 - views, views)


@dataclass(frozen=True)
class Operations:
    """The functions of this module that torch.compile makes a few kernels of; each by itself, to compile in seconds."""

    crop_views: Callable[[Tensor, Tensor, Tensor, int], Tensor] = crop_views
    color_step: Callable[[Tensor, Tensor], Tensor] = color_step
    blur_along: Callable[[Tensor, Tensor, int], Tensor] = blur_along
