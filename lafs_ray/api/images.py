"""Faces from a script to what a network reads, after checks of size, range and color order."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.images import ColorOrder, decode_image, decode_resized
from lafs_ray.data.packing.inspection import skin_color_order
from lafs_ray.errors import DataError
from lafs_ray.models.landmark_cnn import normalize_pixels

ValueRange = Literal["0..255", "0..1", "-1..1"]
_LIMITS: dict[str, tuple[float, float]] = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
# Fewer images with skin say too little about their color order.
_LEAST_IMAGES, _SHARE = 4, 0.75


def as_pixels(
    images: Any, *, color_order: ColorOrder = "rgb", value_range: ValueRange | None = None, resize: bool = False
) -> Tensor:
    """Check faces and return them as the network reads them: float32 [B, 3, 112, 112], RGB, in [-1, 1].

    Args:
        images: one or several aligned faces: uint8 or float arrays or tensors, [H, W, 3], [B, H, W, 3] or [B, 3, H, W];
            PIL images; paths of image files; or a list of these.
        color_order: of arrays and tensors; files and PIL images are read as RGB.
        value_range: of float values; uint8 is 0..255.
        resize: scale square images of another size.

    Raises:
        DataError: another shape, size or type, or values outside of their range.
    """
    if isinstance(images, list | tuple):
        return _from_list(images, color_order, value_range, resize=resize)
    if isinstance(images, str | Path) or not isinstance(images, np.ndarray | Tensor):
        return _from_array(_read(images, resize=resize)[None], "rgb", None, resize=resize)
    values = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    return _from_array(_batch(values), color_order, value_range, resize=resize)


def _from_list(
    images: Sequence[Any], color_order: ColorOrder, value_range: ValueRange | None, *, resize: bool
) -> Tensor:
    if not images:
        raise DataError("images", found="an empty list", expected="at least one face", fix="pass some faces")
    options: dict[str, Any] = {"color_order": color_order, "value_range": value_range, "resize": resize}
    with warnings.catch_warnings():
        # One image says too little; all together are looked at below.
        warnings.simplefilter("ignore")
        pixels = torch.cat([as_pixels(one, **options) for one in images])
    _warn_of_color_order(pixels)
    return pixels


def _read(image: Any, *, resize: bool) -> NDArray[np.uint8]:
    """Return the RGB pixels of a file or of a PIL image."""
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            fix = "check the path"
            raise DataError(str(image), found=str(error.strerror), expected="an image file", fix=fix) from None
        decode = decode_resized if resize else decode_image
        return decode(data, color_order="rgb", size=IMAGE_SIZE)
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    raise DataError(
        "images",
        found=f"a {type(image).__name__}",
        expected="an array, a tensor, a PIL image, a path, or a list of these",
        fix="convert it to a NumPy array, uint8 [B, 112, 112, 3] in RGB",
    )


def _batch(values: NDArray[Any]) -> NDArray[Any]:
    """Return [B, H, W, 3] of one of the shapes allowed."""
    shape = [*values.shape]
    if values.ndim == 3:
        values = values[None]
    if values.ndim == 4 and values.shape[1] == 3 and values.shape[3] != 3:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[3] != 3 or len(values) == 0:
        raise DataError(
            "images",
            found=f"shape {shape}",
            expected="[H, W, 3], [B, H, W, 3] or [B, 3, H, W], of at least one face",
            fix="three channels; repeat a gray channel three times",
        )
    return values


def _from_array(
    values: NDArray[Any], color_order: ColorOrder, value_range: ValueRange | None, *, resize: bool
) -> Tensor:
    _check_size(values.shape[1:3], resize=resize)
    if values.dtype == np.uint8:
        if value_range not in (None, "0..255"):
            raise DataError(
                "images", found="uint8", expected=f"float values for value_range={value_range!r}", fix="leave it out"
            )
        value_range = "0..255"
    _check_range(values, value_range)
    if values.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
        values = np.stack([cv2.resize(one, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA) for one in values])
    pixels = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))).float()
    if value_range == "0..255":
        pixels = normalize_pixels(pixels)
    elif value_range == "0..1":
        pixels = pixels * 2 - 1
    pixels = pixels.flip(1) if color_order == "bgr" else pixels
    _warn_of_color_order(pixels)
    return pixels


def _check_size(found: tuple[int, ...], *, resize: bool) -> None:
    if found == (IMAGE_SIZE, IMAGE_SIZE) or (resize and found[0] == found[1]):
        return
    square = found[0] == found[1]
    raise DataError(
        "images",
        found=f"{found[1]}x{found[0]} pixels",
        expected=f"aligned faces of {IMAGE_SIZE}x{IMAGE_SIZE}",
        fix="align photos first (`lafs align`)" + (", or pass resize=True if they are aligned" if square else ""),
    )


def _check_range(values: NDArray[Any], value_range: ValueRange | None) -> None:
    """Refuse values that are not in the range named, or floats without one."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("images", found="nan or infinity", expected="finite values", fix="check how they were read")
    found = f"{values.dtype} values from {low:.3g} to {high:.3g}"
    if value_range is None:
        likely = next((name for name, (a, b) in _LIMITS.items() if a <= low and high <= b and high > b / 2), "-1..1")
        raise DataError(
            "images",
            found=found,
            expected="uint8, or the range of other types, which the values alone do not tell",
            fix=f"pass value_range={likely!r}, or one of {', '.join(map(repr, _LIMITS))}",
        )
    if value_range not in _LIMITS:
        expected = f"one of {', '.join(_LIMITS)}"
        raise DataError("value_range", found=repr(value_range), expected=expected, fix="correct it")
    least, most = _LIMITS[value_range]
    if low < least or high > most:
        raise DataError("images", found=found, expected=f"values in {value_range}", fix="pass the right value_range")
    if value_range == "0..255" and high <= 1 and values.dtype != np.uint8:
        raise DataError("images", found=found, expected="values up to 255", fix="pass value_range='0..1'")


def _warn_of_color_order(pixels: Tensor) -> None:
    """Warn where the skin of most faces looks as if red and blue were swapped."""
    shown = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    orders = Counter(skin_color_order(image) for image in shown)
    seen = orders["rgb"] + orders["bgr"]
    if seen >= _LEAST_IMAGES and orders["bgr"] >= _SHARE * seen:
        warnings.warn(
            f"{orders['bgr']} of {seen} faces with skin look as if red and blue were swapped: "
            "cv2.imread returns BGR; pass color_order='bgr' if these are",
            stacklevel=2,
        )
