"""Mix-up of labeled faces, on the training device: whole batches, or nothing, of a step.

Neighboring rows 2j and 2j + 1 are mixed, so who is mixed with whom does not depend on how many
ranks or micro-batches share a batch; λ is one for all of a step. Labels stay sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lafs_ray.models.heads import MixedLabels

_STREAM = 0x6D697870


@dataclass(frozen=True)
class MixupSchedule:
    """λ of every step: 1, or with some probability drawn from Beta(α, α).

    Source: METHOD.md, "Margin softmax and finetuning". Ours: one λ for a step, drawn from (seed,
    step); the reference draws one for each rank and micro-batch.

    Args:
        probability: of a mixed step.
        alpha: α.
        seed: the run's seed.
    """

    probability: float
    alpha: float
    seed: int

    def __call__(self, step: int) -> float:
        """λ of an optimizer step, counted from 0."""
        generator = np.random.default_rng([_STREAM, self.seed, step])
        is_mixed = generator.random() < self.probability
        return float(generator.beta(self.alpha, self.alpha)) if is_mixed else 1.0


def neighbors(count: int, device: torch.device) -> Tensor:
    """The row that each of an even number of rows is mixed with, int64 [count]: 1, 0, 3, 2, …."""
    assert count % 2 == 0, f"{count} rows cannot be mixed in pairs"
    return torch.arange(count, device=device) ^ 1


def mix(
    images: Tensor, labels: Tensor, share: float, partner: Tensor
) -> tuple[Tensor, MixedLabels]:
    """Blend every image with another one of the batch: λ·x + (1 - λ)·x[partner].

    Source: golden case f3, whose partner is the reversed batch.

    Args:
        images: float [B, …].
        labels: int64 [B].
        share: λ in 0…1, the share of an image itself.
        partner: int64 [B], row of the other image.

    Returns:
        The mixed images and their labels.
    """
    shares = torch.full((len(labels),), share, dtype=torch.float32, device=labels.device)
    mixed = images * share + images[partner] * (1 - share)
    return mixed, MixedLabels(labels, labels[partner], shares)
