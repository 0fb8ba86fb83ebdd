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
from lafs_ray.evaluation.embedding_file import CHUNK, Decoding, Embed, Outcome, embed_sound, too_many_damaged
from lafs_ray.models.readout import Whitening

logger = logging.getLogger(__name__)

NUM_NEIGHBORS = 30
# Of the pairs that a whitening learns from; a run learns more from more of them, less certain (`lafs mine-neighbors`).
WHITENING_MIN_SHARED = 16
# Share of a sphere in the covariance of pairs: some thousand faces have pairs, and few of their directions are certain.
SHRINKAGE = 0.1
# All with all: minutes on two cores. On a GPU its memory is the limit: 1.4 kB a face of 350 numbers.
_MAX_FACES, _MAX_GPU_FACES = 200_000, 8_000_000
# Faces whose cosines are computed at a time, and others.
_ROWS, _GPU_ROWS, _COLUMNS = 512, 4096, 1 << 18
_EDGES = 20_000
# Fewer faces are compared within seconds.
_LOGGED = 20_000

Indices = NDArray[np.int64]
_CPU = torch.device("cpu")


def max_faces(device: torch.device) -> int:
    """Return how many faces of a set a device compares; of a larger set they are spread over it."""
    return _MAX_FACES if device.type == "cpu" else _MAX_GPU_FACES


def nearest(vectors: Tensor, count: int = NUM_NEIGHBORS, device: torch.device = _CPU) -> NDArray[np.int32]:
    """Return each face's nearest others by cosine, int32 [N, count]; logs its progress where that takes long.

    Args:
        vectors: float32 [N, K], N > `count`.
        count: of neighbors.
        device: where they are compared.

    Raises:
        ConfigError: the GPU has too little memory.
    """
    try:
        return _nearest(vectors, count, device)
    except torch.cuda.OutOfMemoryError:
        raise ConfigError(
            f"device {device}",
            found=f"too little memory for {len(vectors):,} faces of {vectors.shape[1]} numbers",
            expected=f"{vectors.nbytes / 1e9:.1f} GB, and some 10 GB for their comparison",
            fix="give another GPU, a network of fewer numbers (lafs whiten --components), or --device cpu, which "
            f"compares {_MAX_FACES:,} faces",
        ) from None


def _nearest(vectors: Tensor, count: int, device: torch.device) -> NDArray[np.int32]:
    """Return `nearest`; raises torch's error where memory ends."""
    directions = vectors.to(device, copy=True)
    F.normalize(directions, dim=1, out=directions)
    found = np.empty((len(vectors), count), dtype=np.int32)
    progress = ProgressLog(logger, "faces compared", len(vectors))
    is_long = len(vectors) >= _LOGGED
    rows = _ROWS if device.type == "cpu" else _GPU_ROWS
    for start in range(0, len(vectors), rows):
        block = _nearest_to(start, directions[start : start + rows], directions, count)
        found[start : start + rows] = block.numpy(force=True)
        if is_long:
            progress.add(len(block))
    return found


def _nearest_to(start: int, queries: Tensor, directions: Tensor, count: int) -> Tensor:
    """Return the nearest others of the faces [B, K] from `start` on, int64 [B, count]."""
    cosines, numbers = [], []
    for begin in range(0, len(directions), _COLUMNS):
        part = queries @ directions[begin : begin + _COLUMNS].T
        part.diagonal(start - begin).fill_(-2)  # not its own neighbor
        best = part.topk(min(count, part.shape[1]))
        cosines.append(best.values)
        numbers.append(best.indices + begin)
    chosen = torch.cat(cosines, dim=1).topk(count).indices
    return torch.cat(numbers, dim=1).gather(1, chosen)


def mine_pairs(vectors: Tensor, min_shared: int, device: torch.device = _CPU) -> tuple[Indices, Indices]:
    """Return pairs of faces that are among each other's 30 nearest and share some of these.

    Args:
        vectors: float32 [N, K], whitened embeddings.
        min_shared: at least so many of the 30.
        device: as for `nearest`.

    Returns:
        Two arrays [P]; each pair in both orders.
    """
    empty = np.empty(0, dtype=np.int64)
    if len(vectors) <= NUM_NEIGHBORS:
        return empty, empty
    neighbors = nearest(vectors, device=device)
    found = [(empty, empty)]
    for numbers in np.array_split(np.arange(len(vectors)), -(-neighbors.size // _EDGES)):
        first, second = np.repeat(numbers, NUM_NEIGHBORS), neighbors[numbers].reshape(-1).astype(np.int64)
        mutual = (neighbors[second] == first[:, None]).any(axis=1)
        first, second = first[mutual], second[mutual]
        shared = (neighbors[first][:, :, None] == neighbors[second][:, None, :]).sum(axis=(1, 2))
        found.append((first[shared >= min_shared], second[shared >= min_shared]))
    one, other = zip(*found, strict=True)
    return np.concatenate(one), np.concatenate(other)


def mine_set(
    source: ImageSource, embed: Embed, decoding: Decoding, min_shared: int, device: torch.device = _CPU
) -> tuple[NeighborPairs, int]:
    """Mine the pairs of a set; each damaged face is logged as a warning.

    Args:
        source: the set.
        embed: uint8 [B, S, S, 3] RGB to vectors float32 [B, K].
        decoding: how faces become pixels.
        min_shared: as for `mine_pairs`.
        device: as for `nearest`.

    Returns:
        The pairs, and how many faces were compared.

    Raises:
        DataError: there is no pair, or more faces are damaged than allowed.
    """
    chunks = -(-source.num_images // CHUNK)
    starts = spread(chunks, max_faces(device) // CHUNK) * CHUNK
    numbers, vectors, count = np.empty(len(starts) * CHUNK, np.int64), torch.empty(0, 1), 0
    outcome = Outcome()
    for rows, _, embedded in embed_sound(source, starts.tolist(), embed, decoding, outcome):
        if not count:
            # In one piece: parts that are joined at the end take twice the memory.
            vectors = torch.empty(len(numbers), embedded.shape[1])
        numbers[count : count + len(rows)] = rows
        vectors[count : count + len(rows)] = torch.from_numpy(embedded)
        count += len(rows)
    if not count:
        raise too_many_damaged(outcome, source, "at least one face")
    faces = numbers[:count]
    first, second = mine_pairs(vectors[:count], min_shared, device)
    if not len(first):
        raise DataError(
            source.path,
            found=f"no neighbors among {count:,} faces",
            expected=f"several photographs of an identity: faces that share {min_shared} of their {NUM_NEIGHBORS} "
            "nearest, among more than these",
            fix="give a set in which identities recur, a network that is whitened (lafs whiten), or a lower "
            "--min-shared",
        )
    return NeighborPairs.from_pairs(faces[first], faces[second]), count


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
    first, second = mine_pairs(vectors, WHITENING_MIN_SHARED)
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
