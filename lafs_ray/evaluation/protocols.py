"""The four evaluation protocols: pairs, nearest-neighbor identities, IJB templates (1:1) and identification (1:N).

Every embedding is evaluated twice: plain, as the protocols have it, and centered (`embed.center`),
which is the fair comparison for a network that has seen no labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import EvalFaces, LabeledSet, PairSet
from lafs_ray.data.identification import Identification, SearchList
from lafs_ray.data.ijb import Templates
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import PixelRange, center, chunks, embed_faces, flip_sum
from lafs_ray.evaluation.identification import FPIRS, RANKS, SearchResult, search
from lafs_ray.evaluation.neighbors import neighbor_accuracies
from lafs_ray.evaluation.results import EvalResult, ResultRow
from lafs_ray.evaluation.templates import TEMPLATE_FARS, TestMode, image_features, pair_scores, template_features
from lafs_ray.evaluation.verification import (
    carries_far,
    kfold_accuracy,
    pair_distances,
    raw_pixel_embeddings,
    roc_curve,
    tar_at_far,
)
from lafs_ray.models.embedder import FaceEmbedder

Device = Literal["cpu", "cuda"]
# Faces → embeddings of them and of their mirror images, float32 [N, 2, D].
Embed = Callable[[EvalFaces], NDArray[np.float32]]
Embeddings = dict[str, Embed]
Float64s = NDArray[np.float64]
Truths = NDArray[np.bool_]

RAW_PIXELS = "raw pixels"
WHITENED = ", whitened"
"""Ends the names of whitened embeddings. Their mean is subtracted already, so they are evaluated as they are."""
PAIR_FARS = (1e-3, 1e-2, 1e-1)
_LIST_COLUMNS = ("templates", "identities")


def local_embedding(
    network: FaceEmbedder, device: Device = "cpu", pixel_range: PixelRange = "training", *, progress: bool = False
) -> Embed:
    """Return an `Embed` that runs the network in this process, optionally with a progress bar."""
    options: dict[str, Any] = {"device": device, "pixel_range": pixel_range}
    return partial(embed_faces, network.to(device), progress=progress, **options)


def centerings(name: str) -> tuple[bool, ...]:
    """Return whether the mean is subtracted in each row of an embedding of that name."""
    return (False,) if name.endswith(WHITENED) else (False, True)


def evaluate_pairs(source: PairSet, embeddings: Embeddings, *, raw_pixels: bool = False) -> EvalResult:
    """Run 10-fold verification on a pair file for each embedding, plain and centered.

    Args:
        source: the pairs.
        embeddings: by name.
        raw_pixels: whether raw pixels are evaluated as well.

    Raises:
        DataError: an image is damaged, or there are too few pairs.
    """
    same = source.same
    rows = []
    if raw_pixels:
        found = zip((False, True), raw_pixel_distances(source), strict=True)
        rows = [_pair_row(RAW_PIXELS, centered, distances, same) for centered, distances in found]
    for name, embed in embeddings.items():
        plain = flip_sum(embed(source.faces))
        for centered in centerings(name):
            vectors = center(plain) if centered else plain
            rows.append(_pair_row(name, centered, pair_distances(vectors), same))
    counts = {"num_pairs": len(same), "num_same": int(np.count_nonzero(same))}
    return EvalResult("pairs", source.uri, counts, rows)


def _pair_row(name: str, centered: bool, distances: Float64s, same: Truths) -> ResultRow:
    """Compute 10-fold accuracy, TAR at FAR and AUC of pair distances, float64 [P]."""
    accuracy = kfold_accuracy(distances, same)
    metrics: dict[str, float | None] = {"accuracy": accuracy.mean, "std": accuracy.std}
    details: dict[str, Any] = {"fold_accuracies": accuracy.accuracies.tolist()}
    both_kinds = 0 < np.count_nonzero(same) < len(same)
    curve = roc_curve(-distances, same) if both_kinds else None
    metrics["AUC"] = curve.area if curve else None
    num_different = int(np.count_nonzero(~same))
    for far in PAIR_FARS:
        if not carries_far(num_different, far):
            metrics[f"TAR@{far:g}"] = None
            continue
        try:
            found = tar_at_far(distances, same, far)
        except DataError:
            # Undefined on a fold without same or without different pairs; accuracy is not.
            metrics[f"TAR@{far:g}"] = None
            continue
        metrics[f"TAR@{far:g}"] = found.tar
        details[f"TAR@{far:g} std"], details[f"TAR@{far:g} far"] = found.std, found.far
    return ResultRow(name, centered, metrics, details, curve)


def raw_pixel_distances(source: PairSet) -> tuple[Float64s, Float64s]:
    """Return the pair distances of the raw-pixel baseline, an image's pixels less their own mean; float64 [P] each.

    The second ones, centered, are without the mean image as well. There is no flip test.
    """
    faces, total = source.faces, 0.0
    for start, stop in chunks(faces.num_images):
        total = total + raw_pixel_embeddings(faces.read(start, stop)).sum(axis=0)
    mean = total / faces.num_images
    distances: tuple[list[Float64s], list[Float64s]] = ([], [])
    for start, stop in chunks(faces.num_images):
        pixels = raw_pixel_embeddings(faces.read(start, stop))
        for parts, rows in zip(distances, (pixels, pixels - mean), strict=True):
            parts.append(pair_distances(rows))
    plain, centered = (np.concatenate(parts) for parts in distances)
    return plain, centered


def evaluate_identities(source: LabeledSet, embeddings: Embeddings, *, ks: Sequence[int] = (1,)) -> EvalResult:
    """Compute leave-one-out k-NN accuracy on a labeled set for each embedding, plain and centered.

    Args:
        source: the set.
        embeddings: by name.
        ks: numbers of neighbors.

    Raises:
        DataError: a label or an image is damaged, or a k is impossible.
    """
    rows, counts = list[ResultRow](), dict[str, int]()
    for name, embed in embeddings.items():
        plain = flip_sum(embed(source.faces))
        for centered in centerings(name):
            vectors = center(plain) if centered else plain
            found, counts = neighbor_accuracies(vectors, source.labels, ks)
            metrics = zip((f"{k}-NN" for k in ks), found, strict=True)
            rows.append(ResultRow(name, centered, dict(metrics), counts))
    return EvalResult("identities", source.path, counts, rows)


def evaluate_templates(protocol: Templates, embeddings: Embeddings, *, modes: Sequence[TestMode]) -> EvalResult:
    """Compute TAR at FAR of a template protocol for each embedding, plain and centered.

    Args:
        protocol: the lists and faces.
        embeddings: by name.
        modes: the protocol's test modes.

    Raises:
        DataError: an image is damaged, or all pairs are of one kind.
    """
    rows: list[ResultRow] = []
    for name, embed in embeddings.items():
        vectors = embed(protocol.faces)
        cases = itertools.product(modes, centerings(name))
        rows += [_template_row(name, vectors, protocol, *case) for case in cases]
    counts = {
        "num_images": protocol.faces.num_images,
        "num_templates": len(np.unique(protocol.templates)),
        "num_pairs": len(protocol.same),
        "num_same": int(np.count_nonzero(protocol.same)),
    }
    return EvalResult("templates", protocol.uri, counts, rows)


def _template_row(
    name: str, vectors: NDArray[np.float32], protocol: Templates, mode: TestMode, centered: bool
) -> ResultRow:
    """Compute TAR at FAR and AUC of embeddings [N, 2, D]."""
    features = image_features(vectors, protocol.scores, mode, centered=centered)
    pooled, numbers = template_features(features, protocol.templates, protocol.medias)
    scores = pair_scores(pooled, numbers, protocol.first, protocol.second)
    curve = roc_curve(scores, protocol.same)
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {"mode": str(mode)}
    num_different = int(np.count_nonzero(~protocol.same))
    for far in TEMPLATE_FARS:
        if carries_far(num_different, far):
            metrics[f"TAR@{far:g}"], details[f"TAR@{far:g} far"] = curve.tar_at(far)
        else:
            metrics[f"TAR@{far:g}"] = None
    metrics["AUC"] = curve.area
    return ResultRow(f"{name} {mode}", centered, metrics, details, curve)


def evaluate_identification(
    protocol: Identification, embeddings: Embeddings, *, modes: Sequence[TestMode]
) -> EvalResult:
    """Compute rank-k and TPIR at FPIR for each embedding, plain and centered: means over the galleries.

    Args:
        protocol: the lists and faces.
        embeddings: by name.
        modes: test modes, as of templates.

    Raises:
        DataError: an image is damaged.
    """
    rows: list[ResultRow] = []
    for name, embed in embeddings.items():
        vectors = embed(protocol.images.faces)
        cases = itertools.product(modes, centerings(name))
        rows += [_search_row(name, vectors, protocol, *case) for case in cases]
    known = np.concatenate([gallery.identities for gallery in protocol.galleries])
    counts = {
        "num_images": protocol.images.faces.num_images,
        "num_galleries": len(protocol.galleries),
        "num_gallery_templates": len(known),
        "num_queries": len(protocol.queries.templates),
        "num_queries_without_mate": int(rows[0].details["num_without_mate"]),
    }
    return EvalResult("identification", protocol.uri, counts, rows)


def _search_row(
    name: str, vectors: NDArray[np.float32], protocol: Identification, mode: TestMode, centered: bool
) -> ResultRow:
    """Search all galleries with embeddings [N, 2, D]."""
    images, queries = protocol.images, protocol.queries
    features = image_features(vectors, images.scores, mode, centered=centered)
    pooled, numbers = template_features(features, images.templates, images.medias)
    query_rows = pooled[np.searchsorted(numbers, queries.templates)]

    def run(*galleries: SearchList) -> SearchResult:
        templates, identities = (np.concatenate([getattr(g, name) for g in galleries]) for name in _LIST_COLUMNS)
        return search(query_rows, queries.identities, pooled[np.searchsorted(numbers, templates)], identities)

    found = [run(gallery) for gallery in protocol.galleries]
    by_gallery = [_search_metrics(one) for one in found]
    metrics: dict[str, float | None] = {}
    for metric in by_gallery[0]:
        values = [one[metric] for one in by_gallery]
        metrics[metric] = None if None in values else float(np.mean([v for v in values if v is not None]))
    details = {
        "mode": str(mode),
        "galleries": {gallery.name: one for gallery, one in zip(protocol.galleries, by_gallery, strict=True)},
        # As insightface's `ijb_1n.py` ranks; its FPIR counts pairs, not searches, and is not computed.
        "joint_gallery": _search_metrics(run(*protocol.galleries)),
        # The smallest one decides which FPIR the counts carry.
        "num_without_mate": min(len(one.ranks) - one.num_mated for one in found),
    }
    return ResultRow(f"{name} {mode}", centered, metrics, details)


def _search_metrics(found: SearchResult) -> dict[str, float | None]:
    rates = {f"rank-{k}": found.rank_rate(k) for k in RANKS}
    return {**rates, **{f"TPIR@{fpir:g}": found.tpir_at(fpir) for fpir in FPIRS}}
