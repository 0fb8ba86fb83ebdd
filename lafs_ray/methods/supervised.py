"""Supervised training of Part fViT: margin softmax, the landmark CNN learnt or held on the way.

Stage 1 (from scratch) and finetuning (stage 3) are one method: what differs is the weights they
start with. `Supervised` offers the training loop the same parts of a step as `Lafs`.
Shape letters: B images, S image side, N landmarks, D width, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.methods.mixup import mix, neighbors
from lafs_ray.models.checkpoints.state_dicts import LANDMARK_PREFIXES
from lafs_ray.models.fvit import GridFViT, PartFViT
from lafs_ray.models.heads import MixedLabels
from lafs_ray.models.input_range import normalize_pixels
from lafs_ray.models.landmarks import LandmarkCNN, TimmLandmarks
from lafs_ray.models.partial_fc import PartialFC


def to_network_input(images: Tensor) -> Tensor:
    """Images uint8 [B, H, W, 3], RGB, as networks take them: float32 [B, 3, H, W] in [-1, 1]."""
    assert images.dtype == torch.uint8, images.dtype
    return normalize_pixels(images.permute(0, 3, 1, 2))


class SupervisedNetwork(nn.Module):
    """A transformer on faces and its margin softmax as one module, which DDP can wrap.

    DDP is told here to leave the class centers alone, which are each rank's own.

    Args:
        model: images to embeddings, over landmarks or the plain grid.
        head: embeddings and labels to the loss.
    """

    def __init__(self, model: PartFViT | GridFViT, head: PartialFC) -> None:
        super().__init__()
        self.model = model
        self.head = head
        # DDP has no public way to be told; torchrec uses this one.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            self, ["head.weight"]
        )

    def forward(
        self, images: Tensor, labels: Tensor | MixedLabels
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images float [B, 3, S, S] in [-1, 1] and labels of B images to what a step needs.

        Returns:
            The mean loss of this rank's images; whether an image's own class is the nearest, bool
            [B]; and the landmarks [B, N, 2] in pixels, None over the grid.
        """
        if isinstance(self.model, GridFViT):
            return *self.head.loss(self.model(images), labels), None
        landmarks = self.model.landmarks(images)
        return *self.head.loss(self.model.embed(images, landmarks), labels), landmarks


class Supervised:
    """One step of supervised training, in the parts between which the training loop stands.

    Source: METHOD.md, "Margin softmax and finetuning".

    Args:
        model: the network; on its device already.
        head: the margin softmax, on the same device.
        anchor: frozen landmark CNN that the landmarks are held to, on the same device; taken over:
            set to eval mode, gradients off. None holds them to nothing.
    """

    def __init__(
        self,
        model: PartFViT | GridFViT,
        head: PartialFC,
        anchor: LandmarkCNN | TimmLandmarks | None = None,
    ) -> None:
        self.trainable = SupervisedNetwork(model, head)
        self.anchor = None if anchor is None else anchor.eval().requires_grad_(False)

    def begin_step(self, step: int) -> None:
        """Take the classes of this step's softmax from now on, where they are sampled."""
        self.trainable.head.begin_step(step)

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of one micro-batch, and the pull on its landmarks.

        Args:
            network: `trainable`, as it is or wrapped (DDP, compiled).
            batch: `images` uint8 [B, S, S, 3] and `label` int64 [B]; other entries are ignored.
            hparams: with an anchor `regularizer_weight`, λ; with mix-up `mixup_lam`, 1 for a step
                that is not mixed; with freezing `landmarks_frozen`, `transformer_frozen`: 0 or 1.

        Returns:
            The scalar loss with its graph, and scalars without: `loss`; `accuracy`, the share of
            images whose own class has the greatest cosine, without the margin; over landmarks
            `landmark_spread`, how far a landmark moves from image to image (deviation over the
            batch, mean over landmarks and axes, pixels): 0 when the landmark CNN ignores the face;
            and with an anchor `regularizer`, the part of the loss that λ·MSE is, and
            `landmark_drift_px`, how far landmarks are from the anchor's (mean distance).
        """
        images = to_network_input(batch["images"])
        labels: Tensor | MixedLabels = batch["label"]
        share = hparams.get("mixup_lam", 1.0)
        if share < 1.0:
            images, labels = mix(
                images, batch["label"], share, neighbors(len(images), images.device)
            )
        with _eval_mode(*self._frozen_modules(hparams)):
            loss, is_nearest, landmarks = network(images, labels)
        metrics = {"accuracy": is_nearest.float().mean()}
        if landmarks is not None:
            settled = self._settled_landmarks(images)
            metrics["landmark_spread"] = settled.std(dim=0, correction=0).mean()
            if self.anchor is not None:
                with torch.no_grad():
                    target = _in_float32(self.anchor, images)
                metrics["landmark_drift_px"] = (settled - target).norm(dim=-1).mean()
                side = images.shape[-1] - 1
                pull = F.mse_loss(landmarks / side, target / side) * hparams["regularizer_weight"]
                metrics["regularizer"] = pull.detach()
                loss = loss + pull
        return loss, {"loss": loss.detach(), **metrics}

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Remove the gradients of what is frozen: AdamW then neither moves nor decays it."""
        del epoch
        frozen = _frozen(hparams)
        for name, parameter in self.trainable.model.named_parameters():
            if ("landmarks" if name.startswith(LANDMARK_PREFIXES) else "transformer") in frozen:
                parameter.grad = None

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Nothing moves besides what the optimizer moved."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the method has no state beyond `trainable`; the anchor comes with the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `state_dict`."""
        assert not state, f"supervised training keeps no state, found {sorted(state)}"

    def _frozen_modules(self, hparams: Mapping[str, float]) -> list[nn.Module]:
        """Modules that a frozen part keeps in eval mode: no dropout, no moving batch statistics."""
        model, frozen = self.trainable.model, _frozen(hparams)
        modules = [model.transformer, model.dropout] if "transformer" in frozen else []
        if "landmarks" in frozen and isinstance(model, PartFViT):
            modules += [model.stn, model.output_layer]
        return modules

    @torch.no_grad()
    def _settled_landmarks(self, images: Tensor) -> Tensor:
        """Landmarks [B, N, 2] in pixels in eval mode, as pretraining will use the landmark CNN.

        The dropout before its head moves landmarks even where the face does not. This forward is
        0.06 GMAC an image to the step's 40.
        """
        model = self.trainable.model
        assert isinstance(model, PartFViT)
        with _eval_mode(model.stn, model.output_layer):
            return _in_float32(model.landmarks, images)


def _frozen(hparams: Mapping[str, float]) -> list[str]:
    """The parts that this step leaves as they are."""
    return [part for part in ("landmarks", "transformer") if hparams.get(f"{part}_frozen", 0.0) > 0]


def _in_float32(landmarker: Any, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        landmarks: Tensor = landmarker(images)
    return landmarks


@contextlib.contextmanager
def _eval_mode(*parts: nn.Module) -> Iterator[None]:
    """Parts of a network in eval mode for a while."""
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
