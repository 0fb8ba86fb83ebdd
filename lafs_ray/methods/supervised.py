"""Supervised training of Part fViT: margin softmax, and a regularizer on the landmarks.

Stage 1 (from scratch) and finetuning (stage 3) share this code and differ in their initial weights. Shape letters: B
images, S image side, N landmarks, D width, C classes.
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
from lafs_ray.models.landmark_cnn import LandmarkNetwork, normalize_pixels
from lafs_ray.models.landmark_template import FixedPositions
from lafs_ray.models.margin import MixedLabels
from lafs_ray.models.part_fvit import GridFViT, PartFViT
from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.models.readout import WHITENING_PREFIX


def to_network_input(images: Tensor) -> Tensor:
    """Convert uint8 images [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], RGB."""
    assert images.dtype == torch.uint8, images.dtype
    return normalize_pixels(images.permute(0, 3, 1, 2))


class SupervisedNetwork(nn.Module):
    """A face transformer and its margin softmax as one module, which DDP can wrap.

    DDP ignores the class centers, which differ from rank to rank.

    Args:
        model: images to embeddings, over landmarks or the plain grid.
        head: embeddings and labels to the loss.
    """

    def __init__(self, model: PartFViT | GridFViT, head: PartialFC) -> None:
        super().__init__()
        self.model = model
        self.head = head
        # DDP has no public function for it; torchrec uses this one too.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            self, ["head.weight"]
        )

    def forward(self, images: Tensor, labels: Tensor | MixedLabels) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the loss of images float [B, 3, S, S] in [-1, 1].

        Returns:
            The mean loss of this rank's images; whether an image's own class is the nearest, bool [B]; and the
            landmarks [B, N, 2] in pixels, None over the grid.
        """
        if isinstance(self.model, GridFViT):
            return *self.head.loss(self.model(images), labels), None
        landmarks = self.model.landmarks(images)
        return *self.head.loss(self.model.embed(images, landmarks), labels), landmarks


class Supervised:
    """The training step of supervised training, as a `TrainTask`.

    Reference: `train_largescale.py`.

    Args:
        model: the network; on its device already.
        head: the margin softmax, on the same device.
        anchor: landmark CNN whose landmarks regularize those of `model`, on the same device; set to eval mode, without
            gradients. None: no regularizer.
        frozen_blocks: first blocks of the transformer that are never trained, with all that precedes them; their
            parameters need no gradient.
    """

    def __init__(
        self, model: PartFViT | GridFViT, head: PartialFC, anchor: LandmarkNetwork | None = None, frozen_blocks: int = 0
    ) -> None:
        self.trainable = SupervisedNetwork(model, head)
        self.frozen_blocks = frozen_blocks
        self.anchor = None if anchor is None else anchor.eval().requires_grad_(False)

    def begin_step(self, step: int, *, reports: bool) -> None:
        """Reseed the sampling of classes for this step."""
        del reports
        self.trainable.head.begin_step(step)

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return cross-entropy plus landmark regularizer of one micro-batch.

        Args:
            network: `trainable`, possibly wrapped (DDP, compiled).
            batch: `images` uint8 [B, S, S, 3] and `label` int64 [B]; other entries are ignored.
            hparams: with an anchor `regularizer_weight`, λ; with mix-up `mixup_lam`, 1 for a step that is not mixed;
                with freezing `landmarks_frozen`, `transformer_frozen`: 0 or 1.

        Returns:
            The scalar loss with its graph, and scalars without: `loss`; `accuracy`, the fraction of
            images whose own class has the greatest cosine, without the margin; with landmarks `landmark_spread`, a
            landmark's standard deviation over the batch (mean over landmarks and axes, pixels): 0 when the landmark CNN
            ignores the face; and with an anchor `regularizer`, the term λ·MSE of the loss, and `landmark_drift_px`, the
            mean distance of landmarks from the anchor's.
        """
        images = to_network_input(batch["images"])
        labels: Tensor | MixedLabels = batch["label"]
        lam = hparams.get("mixup_lam", 1.0)
        if lam < 1.0:
            images, labels = mix(images, batch["label"], lam, neighbors(len(images), images.device))
        with _eval_mode(*self._frozen_modules(hparams)):
            loss, is_nearest, landmarks = network(images, labels)
        metrics = {"accuracy": is_nearest.float().mean()}
        if landmarks is not None and not isinstance(self.trainable.model.output_layer, FixedPositions):
            eval_landmarks = self._eval_landmarks(images)
            metrics["landmark_spread"] = eval_landmarks.std(dim=0, correction=0).mean()
            if self.anchor is not None:
                with torch.no_grad():
                    target = _in_float32(self.anchor, images)
                metrics["landmark_drift_px"] = (eval_landmarks - target).norm(dim=-1).mean()
                side = images.shape[-1] - 1
                term = F.mse_loss(landmarks / side, target / side) * hparams["regularizer_weight"]
                metrics["regularizer"] = term.detach()
                loss = loss + term
        return loss, {"loss": loss.detach(), **metrics}

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Remove the gradients of frozen parts: AdamW then neither updates nor decays them."""
        del epoch
        frozen = _frozen(hparams)
        for name, parameter in self.trainable.model.named_parameters():
            part = "landmarks" if name.startswith(LANDMARK_PREFIXES) else "transformer"
            if part in frozen and not name.startswith(WHITENING_PREFIX):
                parameter.grad = None

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Do nothing: the optimizer updates everything."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: `trainable` is all the state; the anchor comes with the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        assert not state, f"supervised training keeps no state, found {sorted(state)}"

    def _frozen_modules(self, hparams: Mapping[str, float]) -> list[nn.Module]:
        """Return the frozen modules, which run in eval mode: no dropout, fixed batch statistics."""
        model, frozen = self.trainable.model, _frozen(hparams)
        modules: list[nn.Module] = [model.transformer] if "transformer" in frozen else []
        modules += [*model.transformer.layers[: self.frozen_blocks]]
        modules += [model.dropout] if modules else []
        if "landmarks" in frozen and isinstance(model, PartFViT):
            modules += [model.stn, model.output_layer]
        return modules

    @torch.no_grad()
    def _eval_landmarks(self, images: Tensor) -> Tensor:
        """Return landmarks [B, N, 2] in pixels in eval mode, as pretraining uses the landmark CNN.

        In train mode the dropout before its head moves landmarks. This forward costs 0.06 GMAC an image, a step 40.
        """
        model = self.trainable.model
        assert isinstance(model, PartFViT)
        with _eval_mode(model.stn, model.output_layer):
            return _in_float32(model.landmarks, images)


def _frozen(hparams: Mapping[str, float]) -> list[str]:
    """Return the parts that are frozen in this step."""
    return [part for part in ("landmarks", "transformer") if hparams.get(f"{part}_frozen", 0.0) > 0]


def _in_float32(landmarker: Any, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        landmarks: Tensor = landmarker(images)
    return landmarks


@contextlib.contextmanager
def _eval_mode(*parts: nn.Module) -> Iterator[None]:
    """Run the body with parts of a network in eval mode."""
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
