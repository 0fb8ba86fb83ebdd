"""Embed faces with a frozen network; flip test, centering and L2 normalization of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lafs_ray.data.eval_sets import EvalFaces
from lafs_ray.errors import DataError
from lafs_ray.models.landmark_cnn import normalize_pixels
from lafs_ray.transforms.landmark_predictor import keep_freed_memory

Network = Callable[[Tensor], Tensor]
PixelRange = Literal["training", "reference"]

# Faces read and sent to a worker at once: 9.6 MB. A multiple of the batch, so that any number of processes makes the
# same batches, hence the same bits.
CHUNK = 256
_BATCH = 64


@torch.inference_mode()
def apply_network(
    network: Network,
    images: NDArray[np.uint8],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = _BATCH,
    pixel_range: PixelRange = "training",
) -> NDArray[np.float32]:
    """Run a network on faces, batch by batch.

    Args:
        network: takes [B, 3, S, S]; on `device` and in eval mode already.
        images: uint8 [B, S, S, 3] RGB.
        device: where to compute.
        batch_size: faces at once.
        pixel_range: input range of the network: -1 … 1 as in training, or -0.5 … 0.5.

    Returns:
        float32 [B, …].
    """
    if torch.device(device).type == "cpu":
        # Half of the time of a small network.
        keep_freed_memory()
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
        pixels = batch.to(device).permute(0, 3, 1, 2).float()
        # Reference: evaluates on x / 255 - 0.5, half its training range. Ours: only on request.
        pixels = normalize_pixels(pixels) if pixel_range == "training" else pixels / 255.0 - 0.5
        parts.append(network(pixels).float().cpu().numpy())
    return np.concatenate(parts)


def embed_chunk(network: Network, images: NDArray[np.uint8], **options: Any) -> NDArray[np.float32]:
    """Embed faces and their mirror images: float32 [B, 2, D].

    Args:
        network: as for `apply_network`.
        images: uint8 [B, S, S, 3] RGB.
        options: as for `apply_network`.
    """
    both = [apply_network(network, view, **options) for view in (images, images[:, :, ::-1])]
    return np.stack(both, axis=1)


def embed_faces(network: Network, source: EvalFaces, *, progress: bool = False, **options: Any) -> NDArray[np.float32]:
    """Embed all faces of a source and their mirror images: float32 [N, 2, D].

    Args:
        network: as for `apply_network`.
        source: the faces; 256 of them are in memory at once.
        progress: show a bar on a terminal after three seconds.
        options: as for `apply_network`.

    Raises:
        DataError: a face is missing or does not decode.
    """
    parts = []
    # None shows the bar on a terminal only.
    hidden = None if progress else True
    bar = tqdm(total=source.num_images, unit=" faces", disable=hidden, leave=False, delay=3)
    with bar:
        for start, stop in chunks(source.num_images):
            parts.append(embed_chunk(network, source.read(start, stop), **options))
            bar.update(stop - start)
    return np.concatenate(parts)


def chunks(count: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each chunk of `count` faces."""
    return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]


def flip_sum(embeddings: Floats) -> Float64s:
    """Add the embeddings of each image and of its mirror image: float64 [N, D], not normalized.

    Args:
        embeddings: of the image and of its mirror, [N, 2, D].
    """
    # Reference: sums in float64.
    total: Float64s = embeddings.astype(np.float64).sum(axis=1)
    return total


def center(rows: Floats) -> Float64s:
    """Subtract the mean embedding: float64 [N, D]. Uses no labels.

    Ours. Self-supervised embeddings share a large common component: after normalization they lie in a narrow cone,
    whose distances the protocol's threshold grid (steps of 0.01) cannot resolve.
    """
    values = rows.astype(np.float64)
    centered: Float64s = values - values.mean(axis=0)
    return centered


def normalize(rows: Floats) -> Float64s:
    """L2-normalize the rows: float64 [N, D]. A row of zeros stays zero.

    Raises:
        DataError: an embedding is not finite, so that metrics would be undefined.
    """
    assert rows.ndim == 2, "embeddings are rows"
    values = rows.astype(np.float64)
    require_finite(values)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms == 0, 1, norms)


def require_finite(rows: Floats, names: Sequence[str] | None = None) -> None:
    """Reject embeddings [N, D] with nan or infinity; `names` has a name for each row.

    Raises:
        DataError: an embedding is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DataError(
            f"embedding of {names[bad[0]] if names else f'image {bad[0]}'}",
            found=f"nan or infinity, in {len(bad)} of {len(rows)} rows",
            expected="finite numbers",
            fix="the network has diverged: take an earlier checkpoint",
        )
