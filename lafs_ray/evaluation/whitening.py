"""Whitening of embeddings, fitted on faces without labels; and whitened pixels, the baseline of two seconds.

Self-supervised embeddings spread over few directions, which outweigh all others in a cosine. PCA whitening gives the
strongest K directions of a set of faces equal weight. No label is read. Shape letters: N faces, D width, K components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.config.train import Readout
from lafs_ray.data.eval_sets import EvalFaces, color_order_of, open_images
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.shard import spread
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.evaluation.embed import chunks, embed_chunk
from lafs_ray.evaluation.mined_pairs import discriminate
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.readout import Whitening

MAX_FACES, MAX_MINED_FACES = 10_000, 50_000
BASE_COMPONENTS = 400
"""Components of the whitening in which neighbors are mined."""

# Images, uint8 [B, S, S, 3], to vectors of them and of their mirror images, float32 [B, 2, D].
Describe = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Of the vectors that a whitening is fitted on, mirror images included: float32.
_MAX_BYTES = 1 << 30
_CHUNK = 64
_VECTORS_PER_COMPONENT = 20
# Up to this width all components are computed; above it the strongest alone, from twice as many random directions.
_EXACT_DIM, _OVERSAMPLING, _ITERATIONS = 2048, 2, 3
_PIXELS_SIDE = 32


@dataclass(frozen=True)
class FaceSample:
    """Faces spread evenly over a set, to fit a whitening on.

    Args:
        path: a folder of image files, or `.rec` files.
        faces: the set.
        starts: first faces of the chunks of `_CHUNK` that are taken.
    """

    path: str
    faces: EvalFaces
    starts: tuple[int, ...]

    @property
    def num_faces(self) -> int:
        """Number of faces in the sample."""
        return sum(min(_CHUNK, self.faces.num_images - start) for start in self.starts)


def sample_faces(path: str, dim: int, color_order: ColorOrder = "rgb", *, most: int = MAX_FACES) -> FaceSample:
    """Open a set and choose some of its faces, fewer where their vectors would not fit 1 GB.

    Args:
        path: a folder of aligned image files, or `.rec` files.
        dim: D.
        color_order: what the images decode to, where the set does not say.
        most: largest number of faces.

    Raises:
        DataError: there are no faces.
    """
    source = open_images(path)
    faces = EvalFaces(source, color_order_of(source, color_order))
    most = min(most, _MAX_BYTES // (2 * 4 * dim))
    chunks = -(-faces.num_images // _CHUNK)
    taken = spread(chunks, max(most // _CHUNK, 1))
    return FaceSample(path, faces, tuple((taken * _CHUNK).tolist()))


def fit_whitening(
    vectors: NDArray[np.floating[Any]], components: int, subject: str, *, at_least: int | None = None
) -> Whitening:
    """Fit a whitening on vectors [M, D]: their mean, and K principal directions divided by their deviations.

    Args:
        vectors: of faces; may be changed.
        components: K.
        subject: the set, for messages.
        at_least: of K, where the vectors do not differ in as many directions; None: as `components`.

    Raises:
        ConfigError: there are fewer vectors or numbers than components, or the vectors hardly differ in some.
    """
    count, dim = vectors.shape
    if not 1 <= components <= min(dim, count - 1):
        raise ConfigError(
            "components of the whitening",
            found=str(components),
            expected=f"1 to {min(dim, count - 1)}: {subject} gives {count} vectors of {dim} numbers",
            fix="reduce --components, or give more faces",
        )
    rows = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    mean = rows.mean(dim=0)
    rows -= mean
    # The smaller of the two products has the same eigenvalues.
    if min(dim, count) > _EXACT_DIM and _OVERSAMPLING * components <= min(dim, count):
        variances, directions = _strongest(rows, components)
    elif dim <= count:
        variances, directions = torch.linalg.eigh((rows.T @ rows).double() / (count - 1))
    else:
        variances, weights = torch.linalg.eigh((rows @ rows.T).double() / (count - 1))
        directions = (rows.T @ weights.float()).double() / (variances.clamp(min=1e-30) * (count - 1)).sqrt()
    variances, directions = variances.flip(0)[:components], directions.flip(1)[:, :components]
    # float32 sums leave noise of this size in directions that have no variance.
    if not variances[-1] > 1e-6 * variances[0]:
        rank = int((variances > 1e-6 * variances[0]).sum())
        if at_least is None or rank < at_least:
            raise ConfigError(
                "components of the whitening",
                found=str(at_least or components),
                expected=f"at most {rank}: vectors of {subject} do not differ in more directions",
                fix=f"set --components {rank} or less",
            )
        variances, directions, components = variances[:rank], directions[:, :rank], rank
    fitted = Whitening(dim, components)
    fitted.mean.copy_(mean)
    fitted.matrix.copy_(directions / variances.sqrt())
    return fitted.requires_grad_(requires_grad=False)


def _strongest(rows: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return variances, rising, and directions [D, K] of the strongest components of centered rows [M, D].

    Randomized (Halko et al., 2011): all eigenvectors of D = 6,400 take minutes, of which 400 are used.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, values, directions = torch.svd_lowrank(rows, q=_OVERSAMPLING * components, niter=_ITERATIONS)
    kept = values[:components].double().square() / (len(rows) - 1)
    return kept.flip(0), directions[:, :components].double().flip(1)


@dataclass(frozen=True)
class WhiteningOptions:
    """How embeddings are whitened.

    Args:
        faces: set without labels that it is fitted on: a folder of image files, or `.rec` files.
        readout: which outputs of the transformer are whitened.
        components: K.
        neighbors: whether pairs of neighbors are mined, and the directions in which they differ get less weight.
    """

    faces: str
    readout: Readout = "all"
    components: int = 200
    neighbors: bool = False


def whitened_network(
    weights: NetworkWeights,
    options: WhiteningOptions,
    *,
    trained: bool = True,
    color_order: ColorOrder = "rgb",
    **run: Any,
) -> FaceEmbedder:
    """Fit a whitening on a network's readout, and return the network with it.

    Args:
        weights: of the network.
        options: of the whitening.
        trained: whether the transformer has its weights.
        color_order: what the faces decode to, where the set does not say.
        run: `device` and `pixel_range` of `apply_network`.

    Raises:
        UserError: the set cannot be read, or has too few faces.
    """
    read = weights.read_by(options.readout)
    device = run.get("device", "cpu")
    network = read.embedder(trained=trained).to(device)
    whitening = _fit(partial(embed_chunk, network, **run), read.architecture.read_dim, options, color_order)
    network.whitening = whitening.to(device)
    return network


def _fit(describe: Describe, dim: int, options: WhiteningOptions, color_order: ColorOrder) -> Whitening:
    """Fit the whitening of D numbers that describe a face."""
    sample = sample_faces(options.faces, dim, color_order)
    vectors = np.concatenate([_described(describe, sample, start) for start in sample.starts])
    count = 2 * len(vectors)
    if not options.neighbors:
        return fit_whitening(vectors.reshape(-1, dim), options.components, options.faces)
    base_dim = max(options.components, min(BASE_COMPONENTS, dim, count // _VECTORS_PER_COMPONENT))
    mined = sample_faces(options.faces, base_dim, color_order, most=MAX_MINED_FACES)
    # The mean of a face and its mirror image, as in the flip test; of the faces at hand it is taken now, as the fit
    # changes the vectors.
    at_hand = [torch.from_numpy(vectors).mean(dim=1)] if mined.starts == sample.starts else None
    base = fit_whitening(vectors.reshape(-1, dim), base_dim, options.faces, at_least=options.components)
    del vectors
    means = at_hand or (torch.from_numpy(_described(describe, mined, start)).mean(dim=1) for start in mined.starts)
    return discriminate(base, torch.cat([base(part) for part in means]), options.components, options.faces)


def _described(describe: Describe, sample: FaceSample, start: int) -> NDArray[np.float32]:
    """Describe a chunk of a sample: float32 [B, 2, D].

    Raises:
        DataError: a face is missing or does not decode, or a number is not finite.
    """
    vectors = describe(sample.faces.read(start, min(start + _CHUNK, sample.faces.num_images)))
    if not np.isfinite(vectors).all():
        raise DataError(
            f"embeddings of {sample.path}",
            found="nan or infinity",
            expected="finite numbers",
            fix="the network has diverged: take an earlier checkpoint",
        )
    return vectors


def small_faces(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return gray faces of 32×32 pixels and their mirror images, mean 0 and deviation 1: float32 [B, 2, 1024].

    The middle 96×88 pixels of 112×112 are kept: hair and background are outside.
    """
    small = np.empty((len(images), 2, _PIXELS_SIDE, _PIXELS_SIDE), dtype=np.float32)
    for image, target in zip(images, small, strict=True):
        gray = cv2.cvtColor(np.ascontiguousarray(image[8:104, 12:100]), cv2.COLOR_RGB2GRAY)
        target[0] = cv2.resize(gray, (_PIXELS_SIDE, _PIXELS_SIDE), interpolation=cv2.INTER_AREA)
        target[1] = target[0][:, ::-1]
    vectors = small.reshape(len(images), 2, -1)
    vectors -= vectors.mean(axis=2, keepdims=True)
    vectors /= np.maximum(vectors.std(axis=2, keepdims=True), 1e-3)
    return vectors


def fit_pixels(options: WhiteningOptions, color_order: ColorOrder = "rgb") -> Whitening:
    """Fit the whitening of gray pixels, the baseline.

    Raises:
        UserError: as `whitened_network`.
    """
    return _fit(small_faces, _PIXELS_SIDE**2, options, color_order)


def embed_pixels(whitening: Whitening, source: EvalFaces) -> NDArray[np.float32]:
    """Return whitened gray pixels of faces and their mirror images, float32 [N, 2, K]."""
    parts = [torch.from_numpy(small_faces(source.read(*rows))) for rows in chunks(source.num_images)]
    return np.concatenate([whitening(part).numpy() for part in parts])
