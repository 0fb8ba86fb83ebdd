"""Settings of pretraining's objective: the head, self-distillation and its positives, distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config.loader import Real, Section, Tuning
from lafs_ray.config.paths import AbsolutePath
from lafs_ray.config.train import Count, Positive, Rate

_LARGEST_LAYER_GB = 1000


class Head(Section):
    """The projection head."""

    num_prototypes: Positive = 65536
    """Prototypes K: 65536 as in DINO; the released LAFS code has 100000."""
    hidden_dim: Positive = 2048
    """Width of the MLP's hidden layers."""
    bottleneck_dim: Positive = 256
    """Width before the last, weight-normalized layer."""

    @model_validator(mode="after")
    def _layers_fit_a_machine(self) -> Head:
        for name, width in (("num_prototypes", self.num_prototypes), ("hidden_dim", self.hidden_dim)):
            # float32: weights, gradients and two moments of the student, and the teacher's weights.
            size_gb = width * max(self.bottleneck_dim, self.hidden_dim if name == "hidden_dim" else 0) * 5 * 4 / 1e9
            if size_gb > _LARGEST_LAYER_GB:
                other = "hidden_dim" if name == "hidden_dim" else "bottleneck_dim"
                raise ValueError(
                    f"{name}: {width} × {other} {getattr(self, other)} × 5 copies × 4 bytes = {size_gb:,.0f} GB; "
                    f"at most {_LARGEST_LAYER_GB} GB"
                )
        return self


class TeacherTemperature(Section):
    """Schedule of the teacher's temperature: linear from start to end, then constant."""

    start: Annotated[Real, Field(gt=0.0)] = 0.04
    """Temperature of the first epoch."""
    end: Annotated[Real, Field(gt=0.0)] = 0.07
    """Temperature after the warm-up."""
    warmup_epochs: Count = 30
    """Epochs of the warm-up."""


class Dino(Section):
    """Self-distillation (DINO)."""

    student_temp: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: Annotated[TeacherTemperature, Tuning.MUTABLE] = TeacherTemperature()
    """Temperature of the teacher's softmax."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """What prevents collapse: mean, centering by the running mean of the teacher's scores (DINO and the paper);
    sinkhorn, Sinkhorn-Knopp within a micro-batch (DINOv2), for small batches and short runs."""
    center_momentum: Annotated[Rate, Tuning.MUTABLE] = 0.9
    """EMA momentum of the center subtracted from the teacher's output."""
    teacher_momentum: Annotated[Rate, Tuning.MUTABLE] = 0.996
    """Initial EMA momentum of the teacher's weights; increases to 1 on a cosine."""
    teacher_dropout: bool = False
    """Whether the teacher uses dropout and stochastic depth, as in the released code."""
    freeze_last_layer_epochs: Count = 1
    """Epochs in which the head's last layer is frozen."""
    koleo: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.0
    """Weight of KoLeo, which moves the student's embeddings of a micro-batch away from their nearest ones, each global
    view by itself; 0: none (the paper), 0.1 in DINOv2, 2 in configs/pretrain/lafs_small_data.yaml. Not used in a
    distillation."""


EARLIER_TEMP = 0.05
"""`distillation.temp` by default, once; complete settings of runs from then have it."""


class Distillation(Section):
    """Distillation from a frozen network, in place of self-distillation."""

    teacher: AbsolutePath | None = None
    """A weights file of lafs whiten, of this run's tokens: the student learns to find each face by the frozen
    network's embedding; head and dino are then not used. null: self-distillation."""
    temp: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 0.2
    """Temperature of the softmax over the faces of a micro-batch. At 0.05 a face is soon found among 128, and the loss
    has nothing left to teach."""


class Neighbors(Section):
    """Other photographs of a person as positives, where an unlabeled set has them."""

    pairs: AbsolutePath | None = None
    """A file of lafs mine-neighbors, of the set of this run: pairs of faces that probably show one person, each of
    which learns the teacher's targets of the other. null: those of its own other view (the paper)."""
    share: Annotated[Real, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the faces of a batch, on average, that come in such pairs, drawn from the file and read one by one.
    Faces whose places they take are left out of that epoch; at 1 only faces of the file are seen."""
