"""Plots of a run: metric curves, landmarks on faces, ROC curves; drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lafs_ray.evaluation.verification import RocCurve

_COLUMNS = 6
_ROC_POINTS = 5000

# Panels of a run: title, and the metrics drawn into it. The last five are of pretraining alone.
_PANELS = (
    ("loss (nats)", ("loss",)),
    ("entropy (nats)", ("teacher_entropy", "student_entropy")),
    ("KL teacher to student (nats)", ("kl",)),
    ("center norm", ("center_norm",)),
    ("used prototypes (share)", ("used_prototypes",)),
    ("embedding std", ("embedding_std",)),
)


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the loss over the steps of a run; of a pretraining run the SSL diagnostics as well.

    Args:
        lines: of its metrics.jsonl.
    """
    panels = [(title, names) for title, names in _PANELS if all(name in line for name in names for line in lines)]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3.25 * rows), layout="constrained")
    steps = [line["step"] for line in lines]
    for axes, (title, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        for name in names:
            axes.plot(steps, [line[name] for line in lines], label=name.partition("_")[0])
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    return figure


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


def roc_figure(title: str, curves: Mapping[str, RocCurve]) -> Figure:
    """Plot ROC curves over a logarithmic FAR.

    Args:
        title: of the figure.
        curves: by name.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        # IJB-C has a million points, more than a plot shows.
        count = len(curve.fpr)
        shown = np.unique(np.geomspace(1, count, _ROC_POINTS).astype(int)) - 1
        axes.plot(curve.fpr[shown], curve.tpr[shown], label=f"{name} (AUC {curve.area:.4f})")
    axes.set_xscale("symlog", linthresh=1e-6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("FAR")
    axes.set_ylabel("TAR")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def as_png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
