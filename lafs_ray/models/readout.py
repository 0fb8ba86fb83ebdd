"""What of a transformer's outputs makes the embedding: class token, mean of tokens, or all of them; and its whitening.

Shape letters: B images, n tokens, W width, D numbers of a readout, K components.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lafs_ray.config.train import Readout

WHITENING_PREFIX = "whitening."
"""Of the names of a whitening's tensors, beside those of its network."""


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

    Always in float32: the variances of the components differ by orders of magnitude.

    Args:
        dim: D.
        components: K.
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.matrix = nn.Parameter(torch.zeros(dim, components), requires_grad=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] to [B, K]."""
        with torch.autocast(vectors.device.type, enabled=False):
            return (vectors.float() - self.mean) @ self.matrix


class TrainedWhitening(Whitening):
    """A whitening and a linear map of its components that is trained, the identity at first.

    The whitening itself would not survive an optimizer that changes all its numbers by the same amount: directions of
    small variance have large numbers, and those of large variance would outweigh them after a few steps.
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__(dim, components)
        self.map = nn.Parameter(torch.eye(components))

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] to [B, K]."""
        whitened = super().forward(vectors)
        with torch.autocast(vectors.device.type, enabled=False):
            return whitened @ self.map


def fold_map(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's state whose whitening is a `Whitening` again, its trained map multiplied into the matrix."""
    folded = dict(state)
    trained = folded.pop(WHITENING_PREFIX + "map", None)
    if trained is not None:
        folded[WHITENING_PREFIX + "matrix"] = folded[WHITENING_PREFIX + "matrix"] @ trained
    return folded
