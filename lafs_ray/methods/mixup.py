"""Mix-up of labeled faces on the training device, for all images of a step or none.

Neighboring rows 2j and 2j + 1 are mixed, so that pairs do not depend on the number of ranks or micro-batches; all rows
of a step share one λ. Labels stay sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lafs_ray.models.margin import MixedLabels

_STREAM = 0x6D697870


@dataclass(frozen=True)
class MixupSchedule:
    """λ of every step: 1, or with some probability drawn from Beta(α, α).

    Ours: one λ for a step, a function of (seed, step); the reference (`util/mixup_my.py`) draws one
    for each rank and micro-batch.

    Args:
        probability: of a mixed step.
        alpha: α.
        seed: the run's seed.
    """

    probability: float
    alpha: float
    seed: int

    def __call__(self, step: int) -> float:
        """Return λ of an optimizer step, counted from 0."""
        generator = np.random.default_rng([_STREAM, self.seed, step])
        is_mixed = generator.random() < self.probability
        return float(generator.beta(self.alpha, self.alpha)) if is_mixed else 1.0


def neighbors(count: int, device: torch.device) -> Tensor:
    """Return the row that each of an even number of rows is mixed with: 1, 0, 3, 2, …."""
    assert count % 2 == 0, f"{count} rows cannot be mixed in pairs"
    return torch.arange(count, device=device) ^ 1


def mix(images: Tensor, labels: Tensor, lam: float, partner: Tensor) -> tuple[Tensor, MixedLabels]:
    """Mix every image with another one of the batch: λ·x + (1 - λ)·x[partner].

    Reference: `util/mixup_my.py`, where the partner is the reversed batch.

    Args:
        images: float [B, …].
        labels: int64 [B].
        lam: λ in 0…1, the weight of the image itself.
        partner: int64 [B], row of the other image.

    Returns:
        The mixed images and their labels.
    """
    weights = torch.full((len(labels),), lam, dtype=torch.float32, device=labels.device)
    mixed = images * lam + images[partner] * (1 - lam)
    return mixed, MixedLabels(labels, labels[partner], weights)
