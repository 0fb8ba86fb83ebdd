"""Settings of LAFS pretraining (stage 2); defaults are the `lafs` recipe, the paper's intent.

`configs/pretrain/reference.yaml` lists where the released code computes something else.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from lafs_ray.config.loader import STORED, Duration, DurationField, Real, Section, Tuning
from lafs_ray.config.objective import EARLIER_TEMP, Dino, Distillation, Head, Neighbors
from lafs_ray.config.train import Monitoring, Positive, TrainConfig
from lafs_ray.config.views import Crops, PretrainLandmarks, Views


class PretrainStart(Section):
    """Pretrained weights to continue from, in a run of its own; none is from scratch."""

    student: str | None = None
    """Pretraining run or checkpoint (ours, published or converted) whose student continues: its transformer, and its
    head where num_prototypes and widths are the same. model.size, num_landmarks and patch_size are those of a run
    unless set, and so is landmarks.weights. Or a file of timm's own weights of model.student."""
    teacher: str | None = None
    """Checkpoint of the teacher, with its center; null: that of start.student."""

    @model_validator(mode="after")
    def _teacher_has_a_student(self) -> PretrainStart:
        if self.teacher is not None and self.student is None:
            raise ValueError("teacher: needs start.student, which is trained; name it, the same file if it has both")
        return self


class Optimizer(Section):
    """AdamW and its schedules."""

    lr: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 5e-4
    """Peak learning rate for a batch of 256; scaled by batch_size / 256."""
    min_lr: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 1e-6
    """Final learning rate of the cosine."""
    warmup: DurationField = Duration(amount=10.0, unit="epochs")
    """Linear warm-up from 0."""
    weight_decay: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.04
    """Initial weight decay; none on biases and norms."""
    weight_decay_end: Annotated[Real, Field(ge=0.0), Tuning.MUTABLE] = 0.4
    """Final weight decay of its cosine."""
    clip_grad: Annotated[Real, Field(gt=0.0), Tuning.MUTABLE] = 3.0
    """Norm at which the gradient of each parameter is clipped separately."""


class PretrainMonitoring(Monitoring):
    """Health checks during pretraining."""

    collapse: Literal["warn", "stop", "off"] = "warn"
    """Reaction to signs of collapse (docs/watching.md): warn logs advice; stop also saves and ends the run after five
    consecutive reports with the same sign."""


class PretrainConfig(TrainConfig):
    """LAFS pretraining."""

    duration: DurationField = Duration(amount=41.0, unit="epochs")
    """Length of the run, in epochs or steps."""
    batch_size: Positive = 1024
    """Global batch: faces in one optimizer step, over all workers and micro-batches."""
    landmarks: Annotated[PretrainLandmarks, Tuning.DEFINES_LOSS] = PretrainLandmarks()
    """Landmarks and their augmentation."""
    start: PretrainStart = PretrainStart()
    """Pretrained weights."""
    views: Annotated[Views, Tuning.DEFINES_LOSS, Tuning.MUTABLE] = Views()
    """Views and their augmentation."""
    crops: Annotated[Crops, Tuning.OPERATIONAL] = Crops()
    """Where views are transformed."""
    head: Annotated[Head, Tuning.DEFINES_LOSS] = Head()
    """Projection head."""
    dino: Annotated[Dino, Tuning.DEFINES_LOSS] = Dino()
    """Loss, center and teacher."""
    distillation: Annotated[Distillation, Tuning.DEFINES_LOSS] = Distillation()
    """A frozen network as the teacher."""
    neighbors: Annotated[Neighbors, Tuning.DEFINES_LOSS] = Neighbors()
    """Pairs of photographs that probably show one person."""
    optim: Optimizer = Optimizer()
    """Optimizer."""
    monitoring: Annotated[PretrainMonitoring, Tuning.OPERATIONAL] = PretrainMonitoring()
    """Health checks."""

    @model_validator(mode="after")
    def _landmarks_fit(self) -> PretrainConfig:
        local, total = self.views.local_tokens(self.landmarks), self.model.num_landmarks
        if self.landmarks.source == "grid":
            self._grid_fits(local, total)
        elif self.landmarks.source == "template":
            self.model.require_square(self.landmarks.template)
        elif self.landmarks.source == "cached" and self.landmarks.weights is None:
            if self.data.mix is not None:
                self.data.require_landmarks(None)
            elif self.landmarks.cache is None:
                raise ValueError(
                    "landmarks.weights, landmarks.cache: one is required with landmarks.source=cached: the landmark "
                    "CNN whose landmarks were cached, or the folder of another tool's landmarks "
                    "(lafs cache-landmarks --from)"
                )
        elif self.landmarks.weights is None and self.start.student is None:
            raise ValueError(
                "landmarks.weights: required, the landmark CNN comes from stage 1; give its "
                "checkpoint, or without one landmarks.source=template (fixed positions; docs/routes.md), "
                "or landmarks.source=grid to pretrain without landmarks"
            )
        elif self.landmarks.source == "cached" and self.landmarks.weights == "untrained":
            raise ValueError(
                "landmarks.source: cached, but landmarks.weights=untrained; only landmarks of a "
                "stage-1 checkpoint are cached"
            )
        if self.landmarks.source != "grid" and local > total and not self.landmarks.replacement:
            raise ValueError(
                f"landmarks.local_tokens: {local} of {total} landmarks (model.num_landmarks) "
                "cannot be sampled without replacement; reduce it or set landmarks.replacement=true"
            )
        if self.landmarks.source != "grid" and local > total:
            raise ValueError(
                f"landmarks.local_tokens: {local} tokens, but the model has positions for {total} (model.num_landmarks)"
            )
        return self

    @model_validator(mode="after")
    def _caches_are_of_their_sets(self) -> PretrainConfig:
        self.data.refuse_cache(self.landmarks.cache)
        if self.landmarks.source != "cached":
            self.data.refuse_landmarks(f"landmarks.source={self.landmarks.source} uses none")
        return self

    @model_validator(mode="after")
    def _template_is_used(self) -> PretrainConfig:
        landmarks = self.landmarks
        if landmarks.template is not None and landmarks.source != "template":
            raise ValueError(
                f"landmarks.template: {landmarks.template}, but landmarks.source={landmarks.source}; "
                "set landmarks.source=template, or leave it out"
            )
        return self

    def _grid_fits(self, local: int, total: int) -> None:
        self.model.require_grid()
        side = math.isqrt(local)
        if side * side != local or local > total:
            raise ValueError(
                f"landmarks.local_tokens: {local}, but a local grid is a square number of at most "
                f"{total} patches, such as 36"
            )

    @property
    def teacher_warmup_epochs(self) -> int:
        """Epochs of the warm-up of the teacher's temperature; 0 in a distillation, which has none."""
        return 0 if self.distillation.teacher is not None else self.dino.teacher_temp.warmup_epochs

    @property
    def _has_single_faces(self) -> bool:
        """Whether a micro-batch may be of 1 face."""
        return any(self.batch_size == workers * self.accumulation for workers in self.compute.worker_counts)

    @model_validator(mode="after")
    def _neighbors_fit(self, info: ValidationInfo) -> PretrainConfig:
        pairs, share = self.neighbors.pairs, self.neighbors.share
        if pairs is None:
            if share != Neighbors.model_fields["share"].default and not (info.context or {}).get(STORED):
                raise ValueError(
                    f"neighbors.share: {share:g}, but neighbors.pairs is not set; set it, or leave both "
                    f"out (neighbors.share={Neighbors.model_fields['share'].default:g})"
                )
            return self
        if self.distillation.teacher is not None:
            raise ValueError(
                f"neighbors.pairs: {pairs}, with distillation.teacher={self.distillation.teacher}, whose targets come "
                "from a frozen network; leave one of the two out"
            )
        if self.data.mix is not None:
            raise ValueError(f"neighbors.pairs: {pairs}, which is of one set; name that set by data.path")
        smallest = 4 if self.dino.koleo else 2
        for workers in self.compute.worker_counts:
            rows, rest = divmod(self.batch_size, workers * self.accumulation)
            if not rest and (rows % 2 or rows < smallest):
                raise ValueError(
                    f"neighbors.pairs: needs micro-batches of an even number of faces, at least {smallest}, but "
                    f"batch_size={self.batch_size} over {workers} x {self.accumulation} is {rows}; change batch_size"
                )
        return self

    @model_validator(mode="after")
    def _koleo_has_neighbors(self) -> PretrainConfig:
        if self.dino.koleo and self.distillation.teacher is None and self._has_single_faces:
            raise ValueError(
                f"dino.koleo: {self.dino.koleo:g}, with micro-batches of 1 face, which has no nearest one; increase "
                "batch_size, reduce accumulation, or set dino.koleo=0"
            )
        return self

    @model_validator(mode="after")
    def _distillation_fits(self) -> PretrainConfig:
        teacher, student = self.distillation.teacher, self.start.student
        if teacher is not None and self._has_single_faces:
            raise ValueError(
                f"distillation.teacher: {teacher}, with micro-batches of 1 face, which is found among no others; "
                "increase batch_size, or reduce accumulation"
            )
        if teacher is not None and student is not None:
            raise ValueError(
                f"distillation.teacher: {teacher}, with start.student={student}; a distillation starts from scratch: "
                "leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _distillation_has_an_effect(self, info: ValidationInfo) -> PretrainConfig:
        if (info.context or {}).get(STORED):
            return self
        teacher, given = self.distillation.teacher, self.distillation.temp
        # Complete settings of earlier runs hold the default of then.
        if teacher is None and given not in (Distillation.model_fields["temp"].default, EARLIER_TEMP):
            raise ValueError(
                f"distillation.temp: {given:g}, but distillation.teacher is not set; set it, or leave both out"
            )
        if teacher is not None and self.monitoring.collapse == "stop":
            raise ValueError(
                "monitoring.collapse: stop, but a distillation (distillation.teacher) has none of the metrics that it "
                "looks at; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _devices_fit(self) -> PretrainConfig:
        if self.crops.device == "cuda" and self.compute.device == "cpu":
            raise ValueError("crops.device: cuda needs compute.device=cuda")
        return self

    @model_validator(mode="after")
    def _schedules_fit(self) -> PretrainConfig:
        epochs = self.teacher_warmup_epochs
        if self.duration.unit == "epochs" and epochs > self.duration.amount:
            raise ValueError(f"dino.teacher_temp.warmup_epochs: {epochs} of a run of {self.duration}")
        warmup = self.optim.warmup
        if warmup.unit == self.duration.unit and warmup.amount > self.duration.amount:
            raise ValueError(f"optim.warmup: {warmup} of a run of {self.duration}")
        return self
