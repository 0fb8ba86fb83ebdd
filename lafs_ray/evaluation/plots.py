"""Pictures drawn without a display: landmarks and attention on faces, ROC curves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lafs_ray.evaluation.verification import RocCurve

_COLUMNS = 6
_ROC_POINTS = 5000


def landmark_overlay(images: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]]) -> Figure:
    """Draw landmarks on faces, colored by index, so that one landmark has one color.

    Args:
        images: uint8 [B, S, S, 3] RGB.
        landmarks: [B, N, 2] in pixels, (x, y).
    """
    return _overlay(images, landmarks, np.broadcast_to(np.arange(landmarks.shape[1]), landmarks.shape[:2]), "hsv", 9)


def attention_overlay(
    images: NDArray[np.uint8], landmarks: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]]
) -> Figure:
    """Draw on faces what the class token attends to: the brighter a point, the larger its weight.

    Args:
        images: uint8 [B, S, S, 3] RGB.
        landmarks: [B, N, 2] in pixels, (x, y).
        weights: [B, N], attention of the class token to each.
    """
    return _overlay(images, landmarks, weights, "inferno", 25)


def _overlay(
    images: NDArray[np.uint8], points: NDArray[Any], values: NDArray[Any], colors: str, point_size: int
) -> Figure:
    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(2 * _COLUMNS, 2 * rows), layout="constrained")
    all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes, image, at, value in zip(all_axes, images, points, values, strict=False):
        axes.imshow(image)
        axes.scatter(at[:, 0], at[:, 1], c=value, cmap=colors, s=point_size)
        axes.set_xlim(-0.5, image.shape[1] - 0.5)
        axes.set_ylim(image.shape[0] - 0.5, -0.5)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def roc_figure(title: str, curves: Mapping[str, RocCurve], num_different: int) -> Figure:
    """Plot ROC curves over a logarithmic FAR, as far as the counts reach, with the line of chance.

    Args:
        title: of the figure.
        curves: by name.
        num_different: pairs of different identities; the lowest FAR drawn is one of them.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    lowest = 1 / num_different
    chance = np.geomspace(lowest, 1, 100)
    axes.plot(chance, chance, color="gray", linestyle="--", label="chance")
    for name, curve in curves.items():
        # IJB-C has a million points, more than a plot shows.
        count = len(curve.fpr)
        shown = np.unique(np.geomspace(1, count, _ROC_POINTS).astype(int)) - 1
        axes.plot(curve.fpr[shown], curve.tpr[shown], label=f"{name} (AUC {curve.area:.4f})")
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"FAR, from 1 of {num_different:,} different pairs")
    axes.set_ylabel("TAR")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    # Below the plot: on it, it would cover curves.
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def as_png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
