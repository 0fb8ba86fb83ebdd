"""A landmark CNN learns given landmarks, as a `TrainTask`. Shape letters: B images, S image side, N landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lafs_ray.methods.supervised import to_network_input

EYE_DISTANCE_PX = 35.24
"""Distance of the eyes' centers in insightface's alignment, (38.29, 51.70) to (73.53, 51.50)."""


def landmark_errors(found: Tensor, given: Tensor) -> Tensor:
    """Return each face's mean distance of its landmarks [B, N, 2] from the given ones, in pixels, [B]."""
    # The square root has no gradient at 0.
    distances: Tensor = ((found - given).square().sum(dim=-1) + 1e-6).sqrt()
    return distances.mean(dim=1)


class LandmarkRegression:
    """The training step: the mean distance from the given landmarks, as a share of the eyes' distance.

    Args:
        network: images to landmarks; on its device already.
    """

    def __init__(self, network: nn.Module) -> None:
        self.trainable = network

    def begin_step(self, step: int, *, reports: bool) -> None:
        """Do nothing: a step samples nothing."""

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch.

        Args:
            network: `trainable`, possibly wrapped in DDP.
            batch: `images` uint8 [B, S, S, 3] and `landmarks` float32 [B, N, 2] in pixels.
            hparams: unused here.

        Returns:
            The scalar loss with its graph; and without `loss`, and `landmark_spread`, a landmark's standard deviation
            over the batch (mean over landmarks and axes, pixels): 0 when the CNN ignores the face.
        """
        del hparams
        found = network(to_network_input(batch["images"]))
        loss = landmark_errors(found, batch["landmarks"]).mean() / EYE_DISTANCE_PX
        spread = found.detach().std(dim=0, correction=0).mean()
        return loss, {"loss": loss.detach(), "landmark_spread": spread}

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Do nothing: all gradients count."""

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Do nothing: the optimizer updates everything."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: `trainable` is all the state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        assert not state, f"landmark regression keeps no state, found {sorted(state)}"
