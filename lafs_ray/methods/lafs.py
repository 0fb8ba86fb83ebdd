"""LAFS pretraining: student and EMA teacher on landmark tokens of unlabeled faces.

`LafsNetwork` is one of the two networks; `Lafs` implements a training step with both for the training loop. Its input
are tokens: landmarks and patches are computed before, on the CPU or on the device. Shape letters: B images, V views, R
rows (views of images), n tokens, P numbers in a token, D width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lafs_ray.methods.chunked_loss import PartLoss, chunked_dino_loss, part_loss
from lafs_ray.methods.dino_loss import (
    NUM_GLOBAL_VIEWS,
    Center,
    centered_targets,
    dino_loss,
    sinkhorn_targets,
    ssl_diagnostics,
)
from lafs_ray.methods.koleo import koleo_loss
from lafs_ray.methods.optim import CosineSchedule, LinearEpochs, cancel_gradients, ema_update_
from lafs_ray.models.fvit import FViT
from lafs_ray.models.landmark_cnn import normalize_pixels
from lafs_ray.models.placement import uses_gpu_form
from lafs_ray.models.token_sets import can_encode_together, encode_together


def dequantize(tokens: Tensor) -> Tensor:
    """Convert uint8 tokens t to float32 t/127.5 - 1; float tokens are returned unchanged."""
    return normalize_pixels(tokens) if tokens.dtype == torch.uint8 else tokens


class LafsNetwork(nn.Module):
    """A transformer and a head, as DINO's, over several sets of tokens; student or teacher.

    Names in its state are `backbone.*` and `head.*`, those of published checkpoints. Reference: `MultiCropWrapper` in
    `utils.py`.

    Args:
        backbone: tokens [R, n, P] to embeddings [R, D].
        head: embeddings [R, D] to scores [R, K].
    """

    def __init__(self, backbone: FViT, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, token_sets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sets of tokens [R_i, n_i, P] to scores [ΣR_i, K] and embeddings [ΣR_i, D], in the given order."""
        embeddings = self.embed(token_sets)
        return self.head(embeddings), embeddings

    def embed(self, token_sets: Sequence[Tensor]) -> Tensor:
        """Sets of tokens [R_i, n_i, P] to embeddings [ΣR_i, D].

        Consecutive sets with the same token count run as one batch: two forwards, not ten; on a GPU one, in parts.
        A set of no views, in a run without local ones, takes none.
        """
        given = [tokens for tokens in token_sets if len(tokens)]
        batches = [torch.cat(list(sets)) for _, sets in groupby(given, key=lambda t: t.shape[1])]
        if len(batches) > 1 and uses_gpu_form(batches[0]) and can_encode_together(self.backbone):
            return encode_together(self.backbone, batches)
        return torch.cat([self.backbone(batch) for batch in batches])


@dataclass(frozen=True)
class LafsSchedules:
    """The schedules of a pretraining run.

    Args:
        lr: learning rate, by step.
        weight_decay: by step.
        ema_momentum: the teacher's, by step.
        teacher_temp: by epoch.
        steps_per_epoch: of the run.
    """

    lr: CosineSchedule
    weight_decay: CosineSchedule
    ema_momentum: CosineSchedule
    teacher_temp: LinearEpochs
    steps_per_epoch: int

    def __call__(self, step: int) -> dict[str, float]:
        """Return the hyperparameters of `Lafs` and its optimizer at a global step."""
        return {
            "lr": self.lr(step),
            "weight_decay": self.weight_decay(step),
            "ema_momentum": self.ema_momentum(step),
            "teacher_temp": self.teacher_temp(step // self.steps_per_epoch),
        }


class Lafs:
    """The training step of LAFS pretraining, as a `TrainTask`.

    A step: `loss` and backward for every micro-batch, clipping, `before_optimizer`, the optimizer,
    `finish_step`. The loss uses the center of the previous step. Source: LAFS, section 3.2; `train_one_epoch` in the
    released `lafs_train.py`.

    Args:
        student: trained; on its device already.
        teacher: of the same shape and on the same device; initialized from the student here.
        num_prototypes: K.
        student_temp: divides the student's scores.
        center_momentum: weight of the old center in an update.
        freeze_last_layer_epochs: epochs in which the prototypes are not trained.
        teacher_dropout: whether the teacher has dropout and stochastic depth (the reference), or runs in eval mode
            (DINO).
        centering: how collapse is prevented: by the running mean of the teacher's scores (DINO), or by balancing every
            micro-batch (`sinkhorn_targets`).
        koleo: weight of `koleo_loss` of the student's global views; 0: none.
    """

    def __init__(
        self,
        student: LafsNetwork,
        teacher: LafsNetwork,
        *,
        num_prototypes: int,
        student_temp: float,
        center_momentum: float,
        freeze_last_layer_epochs: int,
        teacher_dropout: bool,
        centering: Literal["mean", "sinkhorn"],
        koleo: float,
    ) -> None:
        self.trainable = student
        self.teacher = teacher
        self.teacher.load_state_dict(student.state_dict())
        self.teacher.requires_grad_(False).train(teacher_dropout)
        device = student.backbone.cls_token.device
        self.center = Center(num_prototypes, center_momentum).to(device)
        self.student_temp = student_temp
        self.reports = True
        # Replaced where the loss is compiled.
        self.loss_part: PartLoss = part_loss
        self.diagnostics: Callable[..., dict[str, Tensor]] = ssl_diagnostics
        self.centering = centering
        self.koleo = koleo
        self.freeze_last_layer_epochs = freeze_last_layer_epochs

    def begin_step(self, step: int, *, reports: bool) -> None:
        """Note whether the step reports: on a GPU others have no diagnostics.

        They are 35 of an eager step's 1,484 operators, and read the scores of the global views again (11 MB an image).
        On a CPU, where batches are small, a report has the mean over all steps.
        """
        del step
        self.reports = reports

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch, and add its teacher scores to the center's update.

        Args:
            network: the student, possibly wrapped (DDP, compiled).
            batch: `global_tokens` [B, 2, N, P] and `local_tokens` [B, V_l, n, P], uint8 or float in [-1, 1]; in a run
                with neighbors `paired`, bool [B]: row 2k or 2k + 1 is one of a pair, and each of the two learns the
                other's targets. Other entries are ignored.
            hparams: `teacher_temp`.

        Returns:
            The scalar loss with its graph, and scalars without: `loss`; `koleo`, if it has a weight; and, see
            `begin_step`, `ssl_diagnostics`'s.
        """
        views = [batch["global_tokens"], batch["local_tokens"]]
        global_views, local_views = (crop_major(dequantize(tokens)) for tokens in views)
        num_views = sum(tokens.shape[1] for tokens in views)
        assert views[0].shape[1] == NUM_GLOBAL_VIEWS, views[0].shape
        with torch.no_grad():
            teacher, teacher_embeddings = self.teacher([global_views])
        student, student_embeddings = network([global_views, local_views])
        targets = self._targets(teacher, hparams["teacher_temp"])
        partners = partners_of(batch.get("paired"))
        if partners is not None:
            targets = targets.view(NUM_GLOBAL_VIEWS, len(partners), -1)[:, partners].flatten(0, 1)
        self.center.observe(teacher)
        del teacher
        temp = self.student_temp
        state: dict[str, Tensor] = {}
        if self.reports or not uses_gpu_form(student):
            state = self.diagnostics(student, targets, self.center.center, teacher_embeddings, student_temp=temp)
        if uses_gpu_form(student):
            loss = chunked_dino_loss(student, targets, student_temp=temp, num_views=num_views, part=self.loss_part)
        else:
            loss = dino_loss(student, targets, student_temp=temp, num_views=num_views)
        if self.koleo:
            embeddings = student_embeddings[: len(global_views)]
            koleo = koleo_loss(embeddings, num_views=NUM_GLOBAL_VIEWS, partners=partners)
            loss = loss + self.koleo * koleo
            state["koleo"] = koleo.detach()
        return loss, {"loss": loss.detach(), **state}

    def _targets(self, teacher: Tensor, teacher_temp: float) -> Tensor:
        """Return the teacher's distributions [2·B, K]."""
        if self.centering == "sinkhorn":
            return sinkhorn_targets(teacher, teacher_temp)
        return centered_targets(teacher, self.center.center, teacher_temp)

    def before_optimizer(self, epoch: int, hparams: Mapping[str, float]) -> None:
        """Remove the prototypes' gradient in the first epochs."""
        del hparams
        if epoch < self.freeze_last_layer_epochs:
            cancel_gradients(self.trainable)

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Update the teacher and the center.

        Args:
            hparams: `ema_momentum`.
            skip_update: 0-d; 1 leaves both unchanged.
        """
        ema_update_(self.teacher, self.trainable, hparams["ema_momentum"], skip_update)
        self.center.update(skip_update)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's and the center's state; the tensors change with the next step."""
        return {"teacher": self.teacher.state_dict(), "center": self.center.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; names and shapes must match exactly."""
        self.teacher.load_state_dict(state["teacher"])
        self.center.load_state_dict(state["center"])


def partners_of(paired: Tensor | None) -> Tensor | None:
    """Return the row that each row is paired with, int64 [B]: 2k and 2k + 1 one another, where `paired` says so."""
    if paired is None:
        return None
    return torch.arange(len(paired), device=paired.device) ^ paired.long()


def crop_major(tokens: Tensor) -> Tensor:
    """Reshape [B, V, n, P] to [V·B, n, P], view by view."""
    return tokens.transpose(0, 1).flatten(0, 1)
