"""Pairs of faces that probably show one person, mined without labels, and what they teach a whitening.

Two crops of one photograph differ less than two photographs of a person: nothing in them shows another pose, light or
expression. In a set with several photographs a person, faces that are among each other's nearest neighbors and share
most of these are such photographs. A direction in which they differ says little about identity, so it gets less weight:
linear discriminant analysis on mined pairs, after k-reciprocal neighbors in re-identification (Zhong et al., 2017).
Shape letters: N faces, K components, P pairs.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.data.eval_sets import ImageSource
from lafs_ray.data.neighbor_pairs import NeighborPairs
from lafs_ray.data.progress import ProgressLog
from lafs_ray.data.shard import spread
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.evaluation.embedding_file import CHUNK, Decoding, Embed, Outcome, embed_sound
from lafs_ray.models.readout import Whitening

logger = logging.getLogger(__name__)

MAX_FACES = 200_000
"""Faces of a set that are compared, all with all: minutes on two cores. Of a larger set they are spread over it."""
NUM_NEIGHBORS = 30
MIN_SHARED = 16
# Share of a sphere in the covariance of pairs: some thousand faces have pairs, and few of their directions are certain.
SHRINKAGE = 0.1
_ROWS, _EDGES = 512, 20_000
# Fewer faces are compared within seconds.
_LOGGED = 20_000

Indices = NDArray[np.int64]


def nearest(vectors: Tensor, count: int = NUM_NEIGHBORS) -> NDArray[np.int32]:
    """Return each face's nearest others by cosine, int32 [N, count]; logs its progress where that takes long.

    Args:
        vectors: float32 [N, K], N > `count`.
        count: of neighbors.
    """
    directions = F.normalize(vectors, dim=1)
    found = np.empty((len(vectors), count), dtype=np.int32)
    progress = ProgressLog(logger, "faces compared", len(vectors))
    is_long = len(vectors) >= _LOGGED
    for start in range(0, len(vectors), _ROWS):
        cosines = directions[start : start + _ROWS] @ directions.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -2  # not its own neighbor
        found[start : start + _ROWS] = cosines.topk(count).indices.numpy()
        if is_long:
            progress.add(len(cosines))
    return found


def mine_pairs(vectors: Tensor, min_shared: int = MIN_SHARED) -> tuple[Indices, Indices]:
    """Return pairs of faces that are among each other's 30 nearest and share some of these.

    Args:
        vectors: float32 [N, K], whitened embeddings.
        min_shared: at least so many of the 30.

    Returns:
        Two arrays [P]; each pair in both orders.
    """
    count = len(vectors)
    if count <= NUM_NEIGHBORS:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    neighbors = nearest(vectors)
    first, second = np.repeat(np.arange(count), NUM_NEIGHBORS), neighbors.reshape(-1).astype(np.int64)
    kept = np.empty(len(first), dtype=np.bool_)
    for start in range(0, len(first), _EDGES):
        one, other = first[start : start + _EDGES], second[start : start + _EDGES]
        mutual = (neighbors[other] == one[:, None]).any(axis=1)
        shared = (neighbors[one][:, :, None] == neighbors[other][:, None, :]).sum(axis=(1, 2))
        kept[start : start + _EDGES] = mutual & (shared >= min_shared)
    return first[kept], second[kept]


def mine_set(
    source: ImageSource, embed: Embed, decoding: Decoding, min_shared: int = MIN_SHARED
) -> tuple[NeighborPairs, int]:
    """Mine the pairs of a set; each damaged face is logged as a warning.

    Args:
        source: the set.
        embed: uint8 [B, S, S, 3] RGB to vectors float32 [B, K].
        decoding: how faces become pixels.
        min_shared: as for `mine_pairs`.

    Returns:
        The pairs, and how many faces were compared.

    Raises:
        DataError: there is no pair, or more faces are damaged than allowed.
    """
    chunks = -(-source.num_images // CHUNK)
    starts = spread(chunks, MAX_FACES // CHUNK) * CHUNK
    numbers, vectors = [np.empty(0, np.int64)], []
    for rows, _, embedded in embed_sound(source, starts.tolist(), embed, decoding, Outcome()):
        numbers.append(rows)
        vectors.append(torch.from_numpy(embedded))
    faces = np.concatenate(numbers)
    joined = torch.cat(vectors or [torch.empty(0, 1)])
    vectors.clear()  # half of the memory
    first, second = mine_pairs(joined, min_shared)
    if not len(first):
        raise DataError(
            source.path,
            found=f"no neighbors among {len(faces):,} faces",
            expected=f"several photographs of an identity: faces that share {min_shared} of {NUM_NEIGHBORS} neighbors",
            fix="give a set in which identities recur, or a network that is whitened (lafs whiten)",
        )
    return NeighborPairs.from_pairs(faces[first], faces[second]), len(faces)


def discriminate(whitening: Whitening, vectors: Tensor, components: int, subject: str) -> Whitening:
    """Return a whitening followed by the discriminant analysis of pairs that are mined in its space.

    Args:
        whitening: to K components.
        vectors: what it gives for N faces, float32 [N, K].
        components: kept, at most K: those that vary most between all faces, where those of pairs vary equally.
        subject: the set, for the message.

    Raises:
        ConfigError: there are fewer pairs than K.
    """
    dim = vectors.shape[1]
    first, second = mine_pairs(vectors)
    if len(first) < dim:
        raise ConfigError(
            "--neighbors",
            found=f"{len(first)} pairs of neighbors among {len(vectors)} faces of {subject}",
            expected=f"at least {dim}: a set with several photographs of an identity",
            fix="leave it out, or give more faces",
        )
    # Every face that has neighbors counts once, however many there are.
    weights = torch.from_numpy(1 / np.bincount(first)[first]).float()
    differences = vectors[torch.from_numpy(first)] - vectors[torch.from_numpy(second)]
    within = ((differences * weights[:, None]).T @ differences).double() / (2 * weights.sum())
    within += SHRINKAGE * within.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
    variances, directions = torch.linalg.eigh(within)
    balanced = directions / variances.sqrt()
    spread = balanced.T @ torch.cov(vectors.double().T) @ balanced
    strongest = torch.linalg.eigh(spread).eigenvectors.flip(1)[:, :components]
    result = Whitening(len(whitening.mean), components)
    result.mean.copy_(whitening.mean)
    result.matrix.copy_(whitening.matrix.double() @ balanced @ strongest)
    return result.requires_grad_(requires_grad=False)
