"""Margin softmax over all classes in one process: the reference for Partial FC's tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models.margin import MarginKind, MixedLabels, with_margin


class MarginSoftmax(nn.Module):
    """Cosine logits with a margin on the target class, and their loss: CosFace or ArcFace.

    CosFace: `scale · (cos θ - margin · target)`. ArcFace (ours): `scale · cos(θ + margin · target)`
    and, where that angle would exceed π, `scale · (cos θ - a · sin a)` with a = margin · target, so that the logit
    keeps falling. Computed in float32 even under autocast: at scale 64 a cosine in bfloat16 is off by up to 0.12 in the
    logit. Reference: `CosFace` in `face_pre_pro/ViT_face.py` of the released code.

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
            labels: int64 class numbers [B], or mixed ones; a mixed image's margin is split in the shares of its
                classes.

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
            main = torch.where(labels.share >= 0.5, labels.first, labels.second)
            wanted = labels.share * of_first + (1 - labels.share) * of_second
            return (logits.logsumexp(dim=1) - wanted).mean(), cosines.argmax(dim=1) == main

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
