"""What of a transformer's outputs makes the embedding: class token, mean of tokens, or all of them; and its whitening.

Shape letters: B images, n tokens, W width, D numbers of a readout, K components.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Readout = Literal["class", "mean", "all"]


def read_out(outputs: Tensor, readout: Readout) -> Tensor:
    """Return the vectors [B, D] of a transformer's outputs.

    Args:
        outputs: [B, n + 1, W], the class token first.
        readout: `class` token, D = W; `mean` of the other tokens, D = W; `all` side by side, D = (n + 1) · W.
    """
    if readout == "class":
        return outputs[:, 0]
    return outputs[:, 1:].mean(dim=1) if readout == "mean" else outputs.flatten(1)


def readout_dim(readout: Readout, num_tokens: int, width: int) -> int:
    """Return D, for n tokens and width W."""
    return width * (num_tokens + 1) if readout == "all" else width


class Whitening(nn.Module):
    """Subtract a mean, and scale principal components to a variance of one; fitted, not trained.

    Args:
        dim: D.
        components: K.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.zeros(dim, components))

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] to [B, K]."""
        return (vectors - self.mean) @ self.matrix
