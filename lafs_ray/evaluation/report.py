"""From embeddings to the figures of one input, as rows of a table and of results.json.

Every embedding is judged twice: plain, as the protocols have it, and centered (`vectors.center`),
which is the fair figure for a network that has never seen a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import FaceSource
from lafs_ray.data.ijb import Templates
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import center, chunks
from lafs_ray.evaluation.neighbors import neighbor_accuracies
from lafs_ray.evaluation.templates import (
    TEMPLATE_FARS,
    TestMode,
    image_features,
    pair_scores,
    template_features,
)
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
# What a labeled set's rows say about it.
COUNTS = ("num_images", "num_identities", "num_excluded")

Float64s = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Row:
    """The figures of one embedding.

    Args:
        name: of the embedding.
        centered: whether the mean embedding was subtracted.
        figures: name to value, 0 … 1; None where the input does not define it.
        details: what else results.json says.
        curve: its ROC.
    """

    name: str
    centered: bool
    figures: dict[str, float | None]
    details: dict[str, Any] = field(default_factory=dict)
    curve: RocCurve | None = None

    @property
    def title(self) -> str:
        """Name with the treatment."""
        return f"{self.name}, centered" if self.centered else self.name

    def content(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "embedding": self.name,
            "centered": self.centered,
            **self.figures,
            **self.details,
        }


def pair_rows(name: str, embeddings: NDArray[np.floating[Any]], same: Truths) -> list[Row]:
    """Plain and centered figures of an embedding of pairs.

    Args:
        name: of the embedding.
        embeddings: [2P, D], flip test done.
        same: bool [P].

    Raises:
        DataError: fewer pairs than folds, or an embedding is not finite.
    """
    return [
        pair_row(
            name, centered, pair_distances(center(embeddings) if centered else embeddings), same
        )
        for centered in (False, True)
    ]


def pair_row(name: str, centered: bool, distances: Float64s, same: Truths) -> Row:
    """10-fold accuracy, TAR at FARs and area under the ROC of pair distances, float64 [P]."""
    accuracy = kfold_accuracy(distances, same)
    figures: dict[str, float | None] = {"accuracy": accuracy.mean, "std": accuracy.std}
    details: dict[str, Any] = {"fold_accuracies": accuracy.accuracies.tolist()}
    both_kinds = 0 < np.count_nonzero(same) < len(same)
    curve = roc_curve(-distances, same) if both_kinds else None
    figures["AUC"] = curve.area if curve else None
    for far in PAIR_FARS:
        try:
            found = tar_at_far(distances, same, far)
        except DataError:
            # A fold of one kind has no such rate; its accuracy is sound all the same.
            figures[f"TAR@{far:g}"] = None
            continue
        figures[f"TAR@{far:g}"] = found.tar
        details[f"TAR@{far:g} std"], details[f"TAR@{far:g} far"] = found.std, found.far
    return Row(name, centered, figures, details, curve)


def raw_pixel_rows(source: FaceSource, same: Truths) -> list[Row]:
    """The rows that a network has to beat: an image's pixels less their own mean.

    The centered row subtracts the mean picture as well. Pixels are not mirrored.
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
) -> list[Row]:
    """Plain and centered leave-one-out identity accuracy.

    Args:
        name: of the embedding.
        embeddings: [N, D], flip test done.
        labels: int64 [N].
        ks: neighbors asked.

    Raises:
        DataError: see `neighbor_accuracies`.
    """
    rows = []
    for centered in (False, True):
        found = neighbor_accuracies(center(embeddings) if centered else embeddings, labels, ks)
        figures: dict[str, float | None] = {f"{one.k}-NN": one.accuracy for one in found}
        counts = {name: getattr(found[0], name) for name in COUNTS}
        rows.append(Row(name, centered, figures, counts))
    return rows


def template_rows(
    name: str, embeddings: NDArray[np.floating[Any]], protocol: Templates, modes: Sequence[TestMode]
) -> list[Row]:
    """Plain and centered TAR at FAR of a template protocol, for each test mode.

    Args:
        name: of the embedding.
        embeddings: of its images and of their mirror images, [N, 2, D].
        protocol: the lists.
        modes: the reference's switches.

    Raises:
        DataError: an embedding is not finite, or there are no pairs of one kind.
    """
    rows = []
    for mode in modes:
        for centered in (False, True):
            features = image_features(embeddings, protocol.scores, mode, centered=centered)
            scores = pair_scores(
                *template_features(features, protocol.templates, protocol.medias),
                protocol.first,
                protocol.second,
            )
            curve = roc_curve(scores, protocol.same)
            figures: dict[str, float | None] = {}
            details: dict[str, Any] = {"mode": str(mode)}
            for far in TEMPLATE_FARS:
                figures[f"TAR@{far:g}"], details[f"TAR@{far:g} far"] = curve.tar_at(far)
            figures["AUC"] = curve.area
            rows.append(Row(f"{name} {mode}", centered, figures, details, curve))
    return rows
