"""Margins on the cosines of own classes, and labels of mixed images; for `sharded_softmax`.

Shape letters: B images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
