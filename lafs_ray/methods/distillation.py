"""Distillation: a student learns from landmark views of a face to find it among others, as a frozen network sees them.

The frozen network is one whose embedding is good as a whole and cannot be trained on, such as all outputs of an
untrained transformer, whitened with mined neighbors: no label is read. What it knows of the whole face moves into the
class token of the student, which is then finetuned like any other. Views and student are those of LAFS; the loss is
that of contrastive distillation (InfoNCE; Tian et al., 2020). Shape letters: B images, V views, R rows (views of
images), n tokens, P numbers in a token, K numbers of the frozen embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.config.train import Readout
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.methods.lafs import Lafs, LafsNetwork, crop_major, dequantize
from lafs_ray.methods.optim import ema_update_
from lafs_ray.models.fvit import FViT
from lafs_ray.models.part_fvit import embedding_of
from lafs_ray.models.readout import Whitening


class FrozenNetwork(nn.Module):
    """A transformer and its whitening, in eval mode: tokens [R, n, P] to embeddings [R, K].

    Args:
        transformer: takes the tokens of global views.
        readout: which of its outputs are whitened.
        whitening: of them.
    """

    def __init__(self, transformer: FViT, readout: Readout, whitening: Whitening) -> None:
        super().__init__()
        self.transformer, self.readout, self.whitening = transformer, readout, whitening
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to embeddings, in float32: small differences of outputs are scaled up."""
        with torch.autocast(tokens.device.type, enabled=False):
            return embedding_of(self.transformer, tokens.float(), self.readout, self.whitening)


class Distillation(Lafs):
    """The training step of distillation, as a `TrainTask`.

    Args:
        student: with a head to K numbers; trained; on its device already.
        copy: of the same shape and on the same device: what is evaluated and exported, the student as it is.
        frozen: whose embeddings are learned.
        temp: divides cosines.
    """

    def __init__(self, student: LafsNetwork, copy: LafsNetwork, frozen: FrozenNetwork, *, temp: float) -> None:
        super().__init__(
            student,
            copy,
            num_prototypes=1,
            student_temp=temp,
            center_momentum=1.0,
            freeze_last_layer_epochs=0,
            teacher_dropout=False,
            centering="mean",
            koleo=0.0,
        )
        self.frozen = frozen

    def loss(
        self, network: nn.Module, batch: Mapping[str, Tensor], hparams: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one micro-batch.

        Args:
            network: the student, possibly wrapped (DDP, compiled).
            batch: as in `Lafs.loss`.
            hparams: ignored.

        Returns:
            The scalar loss with its graph, and scalars without: those of `distillation_loss`.
        """
        del hparams
        views = [crop_major(dequantize(batch[name])) for name in ("global_tokens", "local_tokens")]
        with torch.no_grad():
            targets = self.frozen(views[0]).unflatten(0, (NUM_GLOBAL_VIEWS, -1))
            target = F.normalize(targets, dim=-1).sum(dim=0)
        student, _ = network(views)
        return distillation_loss(student, target, temp=self.student_temp)

    def finish_step(self, hparams: Mapping[str, float], skip_update: Tensor | None = None) -> None:
        """Copy the student: an average over the run was 0.04 to 0.07 behind it after 320 steps.

        Args:
            hparams: ignored.
            skip_update: 0-d; 1 leaves the copy unchanged.
        """
        del hparams
        ema_update_(self.teacher, self.trainable, 0.0, skip_update)


def distillation_loss(student: Tensor, target: Tensor, *, temp: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cross-entropy of finding each view's face among all faces of the batch.

    Definition, with s the student's rows and t the targets, both of length 1, and b(r) the face of row r:

        loss = -mean over r of log softmax over b of (s_r · t_b / temp), at b = b(r)

    Args:
        student: [V·B, K], view by view.
        target: [B, K].
        temp: divides cosines.

    Returns:
        The loss, and scalars without a graph: `loss`, `similarity` (mean cosine of a row and its target) and
        `found` (share of rows that are nearest to their own target).
    """
    rows, faces = F.normalize(student.float(), dim=-1), F.normalize(target.float(), dim=-1)
    cosines = rows @ faces.T
    own = torch.arange(len(faces), device=target.device).repeat(len(rows) // len(faces))
    loss = F.cross_entropy(cosines / temp, own)
    with torch.no_grad():
        metrics = {
            "loss": loss.detach(),
            "similarity": cosines.gather(1, own[:, None]).mean(),
            "found": (cosines.argmax(dim=1) == own).float().mean(),
        }
    return loss, metrics
