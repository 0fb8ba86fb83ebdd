"""Heads on the embedding: DINO's projection for pretraining, margins for recognition.

Parameter names are those of published checkpoints. Shape letters: B images, D embedding width,
K prototypes, C classes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose row k is `weight_g[k] · weight_v[k] / ‖weight_v[k]‖`.

    Ours: written out instead of torch's weight-norm hooks, whose derived weight does not survive
    `copy.deepcopy` (the teacher); names and values are the same.

    Args:
        in_dim: width of the input.
        out_dim: number of rows, K.
        frozen_norm: keep `weight_g` at 1 without a gradient.
    """

    def __init__(self, in_dim: int, out_dim: int, *, frozen_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not frozen_norm)
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        bound = 1 / math.sqrt(in_dim)
        nn.init.uniform_(self.weight_v, -bound, bound)

    def effective_weight(self) -> Tensor:
        """Return the normalized weight [K, in_dim] in the parameters' dtype."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / lengths)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., K]."""
        return F.linear(features, self.effective_weight())


class DINOHead(nn.Module):
    """DINO's projection: an MLP with GELU, L2 normalization, weight-normalized prototypes.

    The MLP's weights are initialized from a normal of standard deviation 0.02 truncated at ±2, from
    torch's current generator, its biases with zeros. Reference: `DINOHead` in
    `vision_transformer.py`.

    Args:
        in_dim: D, width of the embedding.
        num_prototypes: K, width of the output.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width before the prototypes.
        num_layers: linear layers in the MLP, at least 1.
        frozen_norm: keep the prototypes' lengths at 1 (DINO's `norm_last_layer`).
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        frozen_norm: bool = True,
    ) -> None:
        super().__init__()
        assert num_layers >= 1, num_layers
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            linear = nn.Linear(width_in, width_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(bottleneck_dim, num_prototypes, frozen_norm=frozen_norm)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [..., D] to prototype scores [..., K] (cosines, while norms are 1)."""
        return self.last_layer(F.normalize(self.mlp(embeddings), dim=-1))  # type: ignore[no-any-return]


MarginKind = Literal["cosface", "arcface"]


@dataclass(frozen=True)
class MixedLabels:
    """Labels of images mixed from two (mix-up), without a dense target over C classes.

    Args:
        first: int64 [B], class with weight `share`.
        second: int64 [B], class with weight 1 - `share`; may equal the first.
        share: float32 [B], in 0…1.
    """

    first: Tensor
    second: Tensor
    share: Tensor


def with_margin(cosines: Tensor, margins: Tensor, kind: MarginKind) -> Tensor:
    """Apply margins to cosines of the same shape, elementwise.

    CosFace: `cos θ - m`. ArcFace (ours): `cos(θ + m)` and, where that angle would exceed π,
    `cos θ - m · sin m`, so that the result keeps falling.
    """
    if kind == "cosface":
        return cosines - margins
    # The floor keeps the square root's gradient finite where an embedding meets its class.
    sines = (1 - cosines.square()).clamp_min(1e-7).sqrt()
    turned = cosines * margins.cos() - sines * margins.sin()
    return torch.where(cosines > -margins.cos(), turned, cosines - margins * margins.sin())
