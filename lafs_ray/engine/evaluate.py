"""Judge a frozen network on pair files and labelled sets, in this process or on Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.sources import ColourOrder, FaceSource, open_labelled, open_pairs
from lafs_ray.evaluation.embed import PixelRange, embed_faces
from lafs_ray.evaluation.report import Row, identity_rows, pair_rows, raw_pixel_rows
from lafs_ray.evaluation.vectors import flip_sum
from lafs_ray.models.embedder import FaceEmbedder

# Faces to embeddings of them and of their mirror images, float32 [N, 2, D].
Embed = Callable[[FaceSource], NDArray[np.float32]]


@dataclass(frozen=True)
class Embedding:
    """A named way from faces to embeddings."""

    name: str
    embed: Embed


def local_embedding(
    name: str, network: FaceEmbedder, device: str = "cpu", pixel_range: PixelRange = "training"
) -> Embedding:
    """A network that embeds in this process."""
    network = network.to(device)
    return Embedding(
        name,
        lambda source: embed_faces(network, source, device=device, pixel_range=pixel_range),
    )


def judge_pairs(
    uri: str,
    embeddings: list[Embedding],
    *,
    colour_order: ColourOrder = "rgb",
    raw_pixels: bool = False,
) -> list[Row]:
    """Rows of a pair file: raw pixels if asked, then each embedding, plain and centred.

    Raises:
        DataError: the file, or an image in it, is damaged; or there are too few pairs.
    """
    source = open_pairs(uri, colour_order)
    same = source.pairs.same
    rows = raw_pixel_rows(source, same) if raw_pixels else []
    for embedding in embeddings:
        rows += pair_rows(embedding.name, flip_sum(embedding.embed(source)), same)
    return rows


def judge_identities(
    path: str,
    embeddings: list[Embedding],
    ks: list[int],
    *,
    colour_order: ColourOrder = "rgb",
) -> list[Row]:
    """Rows of a labelled set: each embedding, plain and centred.

    Raises:
        DataError: the set, a label or an image is damaged; or a k is impossible.
    """
    source = open_labelled(path, colour_order)
    rows: list[Row] = []
    for embedding in embeddings:
        rows += identity_rows(embedding.name, flip_sum(embedding.embed(source)), source.labels, ks)
    return rows
