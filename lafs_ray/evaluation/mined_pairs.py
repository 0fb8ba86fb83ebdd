"""Pairs of faces that probably show one person, mined without labels, and what they teach a whitening.

Two crops of one photograph differ less than two photographs of a person: nothing in them shows another pose, light or
expression. In a set with several photographs a person, faces that are among each other's nearest neighbors and share
most of these are such photographs. A direction in which they differ says little about identity, so it gets less weight:
linear discriminant analysis on mined pairs, after k-reciprocal neighbors in re-identification (Zhong et al., 2017).
Shape letters: N faces, K components, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.errors import ConfigError
from lafs_ray.models.readout import Whitening

NUM_NEIGHBORS = 30
MIN_SHARED = 16
# Share of a sphere in the covariance of pairs: some thousand faces have pairs, and few of their directions are certain.
SHRINKAGE = 0.1
_ROWS, _EDGES = 512, 20_000

Indices = NDArray[np.int64]


def nearest(vectors: Tensor, count: int = NUM_NEIGHBORS) -> NDArray[np.int32]:
    """Return each face's nearest others by cosine, int32 [N, count].

    Args:
        vectors: float32 [N, K], N > `count`.
        count: of neighbors.
    """
    directions = F.normalize(vectors, dim=1)
    found = np.empty((len(vectors), count), dtype=np.int32)
    for start in range(0, len(vectors), _ROWS):
        cosines = directions[start : start + _ROWS] @ directions.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -2  # not its own neighbor
        found[start : start + _ROWS] = cosines.topk(count).indices.numpy()
    return found


def mine_pairs(vectors: Tensor) -> tuple[Indices, Indices]:
    """Return pairs of faces that are among each other's 30 nearest and share at least 16 of these.

    Args:
        vectors: float32 [N, K], whitened embeddings.

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
        kept[start : start + _EDGES] = mutual & (shared >= MIN_SHARED)
    return first[kept], second[kept]


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
