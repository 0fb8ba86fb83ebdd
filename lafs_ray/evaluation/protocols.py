"""The three evaluation protocols: pairs, nearest-neighbor identities and IJB templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import EvalFaces, LabeledSet, PairSet
from lafs_ray.data.ijb import Templates
from lafs_ray.evaluation.embed import PixelRange, embed_faces, flip_sum
from lafs_ray.evaluation.report import COUNTS, ResultRow, identity_rows, pair_rows, raw_pixel_rows, template_rows
from lafs_ray.evaluation.results import EvalResult
from lafs_ray.evaluation.templates import TestMode
from lafs_ray.models.embedder import FaceEmbedder

Device = Literal["cpu", "cuda"]
# Faces → embeddings of them and of their mirror images, float32 [N, 2, D].
Embed = Callable[[EvalFaces], NDArray[np.float32]]
Embeddings = dict[str, Embed]


def local_embedding(
    network: FaceEmbedder, device: Device = "cpu", pixel_range: PixelRange = "training", *, progress: bool = False
) -> Embed:
    """Return an `Embed` that runs the network in this process, optionally with a progress bar."""
    options: dict[str, Any] = {"device": device, "pixel_range": pixel_range}
    return partial(embed_faces, network.to(device), progress=progress, **options)


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
    rows = raw_pixel_rows(source.faces, same) if raw_pixels else []
    for name, embed in embeddings.items():
        rows += pair_rows(name, flip_sum(embed(source.faces)), same)
    counts = {"num_pairs": len(same), "num_same": int(np.count_nonzero(same))}
    return EvalResult("pairs", source.uri, counts, rows)


def evaluate_identities(source: LabeledSet, embeddings: Embeddings, *, ks: Sequence[int] = (1,)) -> EvalResult:
    """Compute leave-one-out k-NN accuracy on a labeled set for each embedding, plain and centered.

    Args:
        source: the set.
        embeddings: by name.
        ks: numbers of neighbors.

    Raises:
        DataError: a label or an image is damaged, or a k is impossible.
    """
    rows: list[ResultRow] = []
    for name, embed in embeddings.items():
        rows += identity_rows(name, flip_sum(embed(source.faces)), source.labels, ks)
    counts = {name: rows[0].details[name] for name in COUNTS}
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
        rows += template_rows(name, embed(protocol.faces), protocol, modes)
    counts = {
        "num_images": protocol.faces.num_images,
        "num_templates": len(np.unique(protocol.templates)),
        "num_pairs": len(protocol.same),
    }
    return EvalResult("templates", protocol.uri, counts, rows)
