"""Metrics of embeddings on one input, as rows of a table and of results.json.

Every embedding is evaluated twice: plain, as the protocols have it, and centered (`embed.center`),
which is the fair comparison for a network that has seen no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import EvalFaces
from lafs_ray.data.ijb import Templates
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import center, chunks
from lafs_ray.evaluation.neighbors import neighbor_accuracies
from lafs_ray.evaluation.templates import TEMPLATE_FARS, TestMode, image_features, pair_scores, template_features
from lafs_ray.evaluation.verification import (
    RocCurve,
    kfold_accuracy,
    pair_distances,
    raw_pixel_embeddings,
    roc_curve,
    tar_at_far,
)

RAW_PIXELS = "raw pixels"
PAIR_FARS = (1e-3, 1e-2, 1e-1)
# Counts of a labeled set that its rows carry.
COUNTS = ("num_images", "num_identities", "num_excluded")

Float64s = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ResultRow:
    """Metrics of one embedding.

    Args:
        name: of the embedding.
        centered: whether the mean embedding was subtracted.
        metrics: name → value, 0 … 1; None where it is undefined on this input.
        details: further values for results.json.
        curve: its ROC.
    """

    name: str
    centered: bool
    metrics: dict[str, float | None]
    details: dict[str, Any] = field(default_factory=dict)
    curve: RocCurve | None = None

    @property
    def title(self) -> str:
        """Name, and whether it is centered."""
        return f"{self.name}, centered" if self.centered else self.name

    def content(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return {"embedding": self.name, "centered": self.centered, **self.metrics, **self.details}


def pair_rows(name: str, embeddings: NDArray[np.floating[Any]], same: Truths) -> list[ResultRow]:
    """Compute verification metrics of an embedding, plain and centered.

    Args:
        name: of the embedding.
        embeddings: [2P, D], after the flip test.
        same: bool [P].

    Raises:
        DataError: fewer pairs than folds, or an embedding is not finite.
    """
    return [
        pair_row(name, centered, pair_distances(center(embeddings) if centered else embeddings), same)
        for centered in (False, True)
    ]


def pair_row(name: str, centered: bool, distances: Float64s, same: Truths) -> ResultRow:
    """Compute 10-fold accuracy, TAR at FAR and AUC of pair distances, float64 [P]."""
    accuracy = kfold_accuracy(distances, same)
    metrics: dict[str, float | None] = {"accuracy": accuracy.mean, "std": accuracy.std}
    details: dict[str, Any] = {"fold_accuracies": accuracy.accuracies.tolist()}
    both_kinds = 0 < np.count_nonzero(same) < len(same)
    curve = roc_curve(-distances, same) if both_kinds else None
    metrics["AUC"] = curve.area if curve else None
    for far in PAIR_FARS:
        try:
            found = tar_at_far(distances, same, far)
        except DataError:
            # Undefined on a fold without same or without different pairs; accuracy is not.
            metrics[f"TAR@{far:g}"] = None
            continue
        metrics[f"TAR@{far:g}"] = found.tar
        details[f"TAR@{far:g} std"], details[f"TAR@{far:g} far"] = found.std, found.far
    return ResultRow(name, centered, metrics, details, curve)


def raw_pixel_rows(source: EvalFaces, same: Truths) -> list[ResultRow]:
    """Compute the raw-pixel baseline: an image's pixels less their own mean.

    The centered row subtracts the mean image as well. There is no flip test.
    """
    total: Float64s | float = 0.0
    for start, stop in chunks(source.num_images):
        total = total + raw_pixel_embeddings(source.read(start, stop)).sum(axis=0)
    mean = total / source.num_images
    distances: tuple[list[Float64s], list[Float64s]] = ([], [])
    for start, stop in chunks(source.num_images):
        pixels = raw_pixel_embeddings(source.read(start, stop))
        for parts, rows in zip(distances, (pixels, pixels - mean), strict=True):
            parts.append(pair_distances(rows))
    return [
        pair_row(RAW_PIXELS, centered, np.concatenate(parts), same)
        for centered, parts in zip((False, True), distances, strict=True)
    ]


def identity_rows(
    name: str, embeddings: NDArray[np.floating[Any]], labels: NDArray[np.int64], ks: Sequence[int]
) -> list[ResultRow]:
    """Compute leave-one-out k-NN accuracy, plain and centered.

    Args:
        name: of the embedding.
        embeddings: [N, D], after the flip test.
        labels: int64 [N].
        ks: numbers of neighbors.

    Raises:
        DataError: see `neighbor_accuracies`.
    """
    rows = []
    for centered in (False, True):
        found = neighbor_accuracies(center(embeddings) if centered else embeddings, labels, ks)
        metrics: dict[str, float | None] = {f"{one.k}-NN": one.accuracy for one in found}
        counts = {name: getattr(found[0], name) for name in COUNTS}
        rows.append(ResultRow(name, centered, metrics, counts))
    return rows


def template_rows(
    name: str, embeddings: NDArray[np.floating[Any]], protocol: Templates, modes: Sequence[TestMode]
) -> list[ResultRow]:
    """Compute TAR at FAR of a template protocol for each test mode, plain and centered.

    Args:
        name: of the embedding.
        embeddings: of its images and of their mirror images, [N, 2, D].
        protocol: the lists.
        modes: the protocol's test modes.

    Raises:
        DataError: an embedding is not finite, or there are no pairs of one kind.
    """
    rows = []
    for mode in modes:
        for centered in (False, True):
            features = image_features(embeddings, protocol.scores, mode, centered=centered)
            scores = pair_scores(
                *template_features(features, protocol.templates, protocol.medias), protocol.first, protocol.second
            )
            curve = roc_curve(scores, protocol.same)
            metrics: dict[str, float | None] = {}
            details: dict[str, Any] = {"mode": str(mode)}
            for far in TEMPLATE_FARS:
                metrics[f"TAR@{far:g}"], details[f"TAR@{far:g} far"] = curve.tar_at(far)
            metrics["AUC"] = curve.area
            rows.append(ResultRow(f"{name} {mode}", centered, metrics, details, curve))
    return rows
