"""Heads above the embedding: DINO's prototypes for pretraining, margin softmax for recognition.

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

    Ours: written out instead of torch's weight-norm hooks, whose derived weight survives neither
    `copy.deepcopy` (the teacher) nor a second wrapping; names and numbers are the same.

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
        """The normalized weight [K, in_dim] in the parameters' dtype."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / lengths)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., K]."""
        return F.linear(features, self.effective_weight())


class DINOHead(nn.Module):
    """DINO's projection: an MLP with GELU, L2 normalization, weight-normalized prototypes.

    The MLP's weights start from a normal of standard deviation 0.02 cut at ±2, its biases at zero,
    drawn from torch's current generator. Source: METHOD.md, "Objective and schedules".

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
    """Labels of images that are mixtures of two (mix-up), without a dense target over C classes.

    Args:
        first: int64 [B], class that has `share` of the image.
        second: int64 [B], class that has the rest; may be the first one again.
        share: float32 [B], in 0…1.
    """

    first: Tensor
    second: Tensor
    share: Tensor

    @property
    def main(self) -> Tensor:
        """The class with the greater share, int64 [B]."""
        return torch.where(self.share >= 0.5, self.first, self.second)


def with_margin(cosines: Tensor, margins: Tensor, kind: MarginKind) -> Tensor:
    """Cosines less their margins, elementwise; see `MarginSoftmax`."""
    if kind == "cosface":
        return cosines - margins
    # The floor keeps the square root's gradient finite where an embedding meets its class.
    sines = (1 - cosines.square()).clamp_min(1e-7).sqrt()
    turned = cosines * margins.cos() - sines * margins.sin()
    return torch.where(cosines > -margins.cos(), turned, cosines - margins * margins.sin())


class MarginSoftmax(nn.Module):
    """Cosine logits with a margin on the target class, and their loss: CosFace or ArcFace.

    CosFace: `scale · (cos θ - margin · target)`. ArcFace (ours): `scale · cos(θ + margin · target)`
    and, where that angle would exceed π, `scale · (cos θ - a · sin a)` with a = margin · target, so
    that the logit keeps falling. Computed in float32 even under autocast: at scale 64 a cosine in
    bfloat16 is off by up to 0.12 in the logit. Source: METHOD.md, "Margin softmax".

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: s.
        margin: m; 0.4 is usual for CosFace, 0.5 (radians) for ArcFace.
        kind: which margin.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        margin: float = 0.4,
        kind: MarginKind = "cosface",
    ) -> None:
        super().__init__()
        assert kind in ("cosface", "arcface"), kind
        self.scale, self.margin, self.kind = scale, margin, kind
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor | MixedLabels) -> Tensor:
        """Logits for a cross-entropy.

        Args:
            embeddings: float [B, D], of any length.
            labels: int64 class numbers [B], or mixed ones; a mixed image's margin is split in the
                shares of its classes (golden case f1).

        Returns:
            float32 [B, C].
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._logits(self.cosines(embeddings), labels)

    def loss(self, embeddings: Tensor, labels: Tensor | MixedLabels) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the logits with the labels.

        Args:
            embeddings: float [B, D], of any length.
            labels: as in `forward`.

        Returns:
            The mean loss, float32 scalar; and whether each image's own class (of a mixed image:
            that of the greater share) has the greatest cosine, without margins: bool [B].
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = self.cosines(embeddings)
            logits = self._logits(cosines, labels)
            if isinstance(labels, Tensor):
                return F.cross_entropy(logits, labels), cosines.argmax(dim=1) == labels
            of_first = logits.gather(1, labels.first.unsqueeze(1)).squeeze(1)
            of_second = logits.gather(1, labels.second.unsqueeze(1)).squeeze(1)
            wanted = labels.share * of_first + (1 - labels.share) * of_second
            return (logits.logsumexp(dim=1) - wanted).mean(), cosines.argmax(dim=1) == labels.main

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines of embeddings [B, D] and all classes, float32 [B, C]."""
        directions = F.normalize(embeddings.float(), dim=-1)
        return F.linear(directions, F.normalize(self.weight.float(), dim=-1))

    def _logits(self, cosines: Tensor, labels: Tensor | MixedLabels) -> Tensor:
        # A dense one-hot target would cost another [B, C]: 165 MB at 200 × 205,990.
        if isinstance(labels, Tensor):
            return self.scale * self._set_margin(cosines, cosines, labels, torch.ones(()))
        # Where both classes are one, the second setting replaces the first, gradient included.
        share = torch.where(labels.first == labels.second, 1.0, labels.share)
        marked = self._set_margin(cosines, cosines, labels.second, 1 - labels.share)
        return self.scale * self._set_margin(marked, cosines, labels.first, share)

    def _set_margin(self, onto: Tensor, cosines: Tensor, classes: Tensor, share: Tensor) -> Tensor:
        """`onto` [B, C] with each row's class [B] replaced by its cosine with a share of m."""
        rows = classes.unsqueeze(1)
        target = cosines.gather(1, rows)
        margins = (self.margin * share.to(target)).reshape(-1, 1).expand_as(target)
        return onto.scatter(1, rows, with_margin(target, margins, self.kind))
