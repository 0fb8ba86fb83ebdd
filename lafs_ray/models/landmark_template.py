"""Landmarks that are the same in every aligned face, in the place of a landmark CNN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

TEMPLATE = "template"
"""The name of this landmark network in an architecture; configurations choose it by `landmarks.source`."""

TEMPLATE_TENSOR = "output_layer.positions"
"""Name of its only tensor, float32 [N, 2] in pixels, (x, y)."""


class FixedPositions(nn.Module):
    """Positions as a buffer, which checkpoints hold and no optimizer changes.

    Args:
        num_landmarks: N.
    """

    positions: Tensor

    def __init__(self, num_landmarks: int) -> None:
        super().__init__()
        self.register_buffer("positions", torch.zeros(num_landmarks, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] to positions [B, N, 2] in pixels; views of one memory."""
        return self.positions.expand(images.shape[0], -1, -1)


class TemplateLandmarks(nn.Module):
    """Images to the same N positions; parts are named as in `LandmarkCNN`.

    Args:
        num_landmarks: N.
    """

    def __init__(self, num_landmarks: int) -> None:
        super().__init__()
        self.stn = nn.Identity()
        self.output_layer = FixedPositions(num_landmarks)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return self.output_layer(images)  # type: ignore[no-any-return]


def is_template(state: Mapping[str, object]) -> bool:
    """Return whether a landmark network's tensors are those of a template."""
    return TEMPLATE_TENSOR in state
