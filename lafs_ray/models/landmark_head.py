"""From an image to landmarks in pixels: trunk, head, and the scaling of the head's numbers.

Shape letters: B images, F features, N landmarks, S image side in pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lafs_ray.models.landmark_template import FixedPositions


def normalize_landmarks(raw: Tensor, image_side: int = 112) -> Tensor:
    """Scale each image's numbers to span exactly 0…S-1 pixels, and pair them.

    Minimum and maximum are taken over all 2N numbers, so x and y share one scale. An image whose numbers are all equal
    gets zeros. Reference: 0/0, hence NaN in every weight one step later.

    Args:
        raw: [B, 2N], x and y alternating.
        image_side: S, in pixels.

    Returns:
        float32 [B, N, 2], pixels, (x, y).
    """
    values = raw.float()
    # Not aminmax, which torch 2.6 cannot differentiate.
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    span = high - low
    unit = (values - low) / torch.where(span > 0, span, 1.0)
    return (unit * (image_side - 1)).reshape(raw.shape[0], -1, 2)


def predict_landmarks(trunk: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
    """Run a trunk, average its feature map over the image, run the head and normalize.

    The head runs in float32 even under autocast: half a bfloat16 step is 0.2 px at 111 px.

    Args:
        trunk: images to features [B, F] or [B, F, h, w].
        head: features [B, F] to [B, 2N].
        images: [B, 3, S, S] in [-1, 1].

    Returns:
        float32 [B, N, 2], pixels, (x, y).
    """
    if isinstance(head, FixedPositions):
        positions: Tensor = head(images)
        return positions
    features = trunk(images)
    if features.ndim == 4:
        features = features.mean(dim=(-2, -1))
    with torch.autocast(images.device.type, enabled=False):
        raw = head(features.to(next(head.parameters()).dtype))
    if isinstance(head, DirectHead):
        return head.to_pixels(raw)
    return normalize_landmarks(raw, image_side=images.shape[-1])


class DirectHead(nn.Sequential):
    """Dropout and linear layer whose numbers are landmarks without the scaling to 0…S-1: -1…1 is the image.

    Ours, for landmarks that are learned by regression: with `normalize_landmarks` one coordinate of every face is 0 and
    one is S-1, wherever the point is.

    Args:
        dropout: rate before the linear layer.
        features: F.
        num_landmarks: N.
        image_side: S, in pixels; the buffer keeps half of it.
    """

    half_side: Tensor

    def __init__(self, dropout: float, features: int, num_landmarks: int, image_side: int = 112) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(features, 2 * num_landmarks))
        self.register_buffer("half_side", torch.tensor(image_side / 2))

    def to_pixels(self, raw: Tensor) -> Tensor:
        """Scale [B, 2N] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return ((raw.float() + 1) * self.half_side).reshape(raw.shape[0], -1, 2)


DIRECT_TENSOR = "output_layer.half_side"
"""A tensor that only landmark CNNs with a `DirectHead` have."""

Scaling = Literal["span", "direct"]
"""`span`: a face's landmarks span 0…S-1 pixels, as published; `direct`: as in `DirectHead`."""


def build_head(scaling: Scaling, dropout: float, features: int, num_landmarks: int) -> nn.Sequential:
    """Build the head of a landmark CNN: features [B, F] to [B, 2N]."""
    if scaling == "direct":
        return DirectHead(dropout, features, num_landmarks)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, 2 * num_landmarks))
