"""A frozen network applied to arrays of faces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.inference_mode()
def apply_network(
    network: Callable[[Tensor], Tensor],
    images: NDArray[np.uint8],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """What a network makes of faces, batch by batch.

    Args:
        network: takes [B, 3, S, S] in [-1, 1]; on `device` and in eval mode already.
        images: uint8 [B, S, S, 3] RGB.
        device: where to compute.
        batch_size: faces at once.

    Returns:
        float32 [B, …].
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
        # Ours: the range of training; the reference evaluates on half of it (docs/method.md).
        pixels = batch.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        parts.append(network(pixels).float().cpu().numpy())
    return np.concatenate(parts)
