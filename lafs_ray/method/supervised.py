"""Supervised training of Part fViT: margin softmax, the landmark CNN learnt on the way.

Stage 1 in its plain form. `Supervised` offers the training loop the same parts of a step as `Lafs`.
Shape letters: B images, S image side, N landmarks, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models.fvit import PartFViT
from lafs_ray.models.heads import MarginSoftmax


def to_network_input(images: Tensor) -> Tensor:
    """Images uint8 [B, H, W, 3], RGB, as networks take them: float32 [B, 3, H, W] in [-1, 1]."""
    assert images.dtype == torch.uint8, images.dtype
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


class SupervisedNetwork(nn.Module):
    """Part fViT and its margin softmax as one module, which DDP can wrap.

    Args:
        model: images to landmarks and embeddings.
        head: embeddings and labels to logits.
    """

    def __init__(self, model: PartFViT, head: MarginSoftmax) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images float [B, 3, S, S] in [-1, 1] and labels int64 [B] to what a step needs.

        Returns:
            Logits with the margin [B, C], and embeddings [B, D].
        """
        embeddings = self.model(images)
        return self.head(embeddings, labels), embeddings


class Supervised:
    """One step of supervised training, in the parts between which the training loop stands.

    Source: METHOD.md, "Margin softmax and finetuning".

    Args:
        model: Part fViT; on its device already.
        head: the margin softmax, on the same device.
    """

    def __init__(self, model: PartFViT, head: MarginSoftmax) -> None:
        self.trainable = SupervisedNetwork(model, head)

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], values: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of one micro-batch.

        Args:
            network: `trainable`, as it is or wrapped (DDP, compiled).
            batch: `images` uint8 [B, S, S, 3] and `label` int64 [B]; other entries are ignored.
            values: none is read.

        Returns:
            The scalar loss with its graph, and scalars without: `loss`; `accuracy`, the share of
            images whose own class has the greatest cosine, without the margin; and
            `landmark_spread`, how far a landmark moves from image to image (deviation over the
            batch, mean over landmarks and axes, pixels): 0 when the landmark CNN ignores the face.
        """
        del values
        images, labels = to_network_input(batch["images"]), batch["label"]
        logits, embeddings = network(images, labels)
        loss = F.cross_entropy(logits, labels)
        return loss, {
            "loss": loss.detach(),
            "accuracy": self._accuracy(logits, embeddings, labels),
            "landmark_spread": self._landmark_spread(images),
        }

    def before_optimizer(self, epoch: int) -> None:
        """Nothing is frozen: every parameter trains from the first epoch."""

    def finish_step(self, values: Mapping[str, float]) -> None:
        """Nothing moves besides what the optimiser moved."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the method has no state beyond `trainable`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `state_dict`."""
        assert not state, f"supervised training keeps no state, found {sorted(state)}"

    @torch.no_grad()
    def _accuracy(self, logits: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Share of rows whose own cosine beats all others.

        The margin stands in the own class's logit only, so one cosine a row undoes it; a second
        product with all C classes would add 158 MMAC an image at 205,990 of them.
        """
        head = self.trainable.head
        own = F.cosine_similarity(embeddings.float(), head.weight[labels].float(), dim=-1)
        others = logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(dim=1)
        return (head.scale * own > others).float().mean()

    @torch.no_grad()
    def _landmark_spread(self, images: Tensor) -> Tensor:
        """Deviation of the landmarks over the batch, mean over landmarks and axes, pixels.

        In eval mode, as pretraining will use the landmark CNN: the dropout before its head moves
        landmarks even where the face does not. This forward is 0.06 GMAC an image to the step's 40.
        """
        model = self.trainable.model
        parts = (model.stn, model.output_layer)
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()
        with torch.autocast(images.device.type, enabled=False):
            landmarks = model.landmarks(images)
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
        return landmarks.std(dim=0, correction=0).mean()
