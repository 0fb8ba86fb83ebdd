"""The sections that all training configurations share."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.data import Data
from lafs_ray.config.loader import Duration, DurationField, Real, Section, Tuning
from lafs_ray.config.paths import AbsolutePath

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[Real, Field(ge=0.0, le=1.0)]
TokenFeatures = Literal["pixels", "orientations"]
Readout = Literal["class", "mean", "all"]
TIMM_PREFIX = "timm/"

# Ray's rule for the values of labels, and for the part of a key after its slash.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
NodeLabels = dict[
    Annotated[str, Field(pattern=rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^{_LABEL}$")],
]

ON_CPU = "compute.device=cpu compute.precision=float32"
"""The two settings of a machine without a GPU, for messages."""

# CPUs that the ingest of a training worker reserves for reading, and those of one read task. Reading mostly waits for
# storage; a whole CPU for each task would take CPUs from preprocessing.
READING_CPUS, CPUS_PER_READ = 1.0, 0.25


class Run(Section):
    """Name, seed and storage of the run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the run; starting the same name again resumes it."""
    storage: AbsolutePath = "runs"
    """Folder or URI in which `<name>/` keeps checkpoints, metrics and the resolved config; all nodes must reach it."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed of everything random: initial weights, order of records, augmentation, dropout."""


class Model(Section):
    """The transformer and the landmark CNN."""

    size: Literal["base", "small", "shallow", "tiny"] = "base"
    """Width and depth of the fViT: base as published; small, shallow (2 of small's 8 blocks) and tiny for debugging and
    CPUs."""
    student: Annotated[str, Field(pattern=r"^timm/.+$")] | None = None
    """The transformer in place of the fViT: timm/<name>, a plain ViT of timm, whose blocks and last norm read our
    tokens; model.size then stays at base. null: the fViT of model.size, as published."""
    num_landmarks: Annotated[int, Field(ge=1, le=4096)] = 196
    """Landmarks, hence tokens, of a whole face; 14 x 14 in the paper."""
    patch_size: Annotated[int, Field(ge=2, le=56)] = 8
    """Side of the patch around each landmark, in pixels."""
    token_features: TokenFeatures = "pixels"
    """Numbers of a token: the pixels of its patch (the paper's), or histograms of 8 gradient directions in the patch's
    2 x 2 cells, which change less with light and are learned from with few faces; patch_size must then be even."""
    dropout: Annotated[Rate, Tuning.MUTABLE] = 0.1
    """Dropout of embedding, attention output and MLP."""
    drop_path: Annotated[Real, Field(ge=0.0, lt=1.0), Tuning.MUTABLE] = 0.1
    """Stochastic depth of both residual branches of every block."""
    drop_path_per_sample: bool = False
    """Whether each sample is dropped on its own, as in the released code, or a fixed number for each branch, whose
    branch is not computed then (DINOv2)."""
    init_std: Annotated[Real, Field(gt=0.0)] = 0.02
    """Standard deviation of initial positions and class token: 0.02 as in DINO; the released code has 1."""
    landmark_cnn: Annotated[str, Field(pattern=r"^(mobilenetv3|timm/.+)$")] = "mobilenetv3"
    """The landmark network: mobilenetv3 as published, or timm/<name> for any timm feature extractor."""
    landmark_cnn_width: Annotated[Real, Field(gt=0.0, le=2.0)] = 1.0
    """Channel multiplier of mobilenetv3; 1.0 as published."""
    landmark_start: Literal["grid", "random"] = "grid"
    """Initial landmarks of an untrained CNN: near a regular grid, or random (reference)."""

    landmark_scaling: Literal["span", "direct"] = "span"
    """Scaling of the landmark CNN's numbers: span, each face's landmarks span 0…111 pixels, as published; direct, as
    the CNNs of jobs/train_landmarks.py, which learn given landmarks."""

    def require_square(self, template: str | None) -> None:
        """Raise a ValueError if the built-in template, a square grid, has no such number of positions."""
        total = self.num_landmarks
        if template is None and (side := math.isqrt(total)) ** 2 != total:
            raise ValueError(
                f"model.num_landmarks: {total}, but the built-in template is a square grid; set {side**2} or "
                f"{(side + 1) ** 2}, or name your own positions: landmarks.template"
            )

    @model_validator(mode="after")
    def _one_size(self) -> Model:
        if self.student is not None and self.size != "base":
            raise ValueError(
                f"size: {self.size}, but student={self.student} has the size of its name; "
                "set size: base, or leave student out"
            )
        return self

    @model_validator(mode="after")
    def _cells_are_whole(self) -> Model:
        if self.token_features == "orientations" and self.patch_size % 2:
            raise ValueError(
                f"patch_size: {self.patch_size}, but token_features=orientations has 2 x 2 cells in a patch; "
                f"set an even number, such as {self.patch_size + 1}"
            )
        return self

    def require_grid(self) -> None:
        """Raise a ValueError unless `num_landmarks` plain patches cover the image."""
        patch, total = self.patch_size, self.num_landmarks
        if IMAGE_SIZE % patch or (IMAGE_SIZE // patch) ** 2 != total:
            raise ValueError(
                f"model.num_landmarks: {total}, but a grid of {patch}-pixel patches on "
                f"{IMAGE_SIZE} pixels has ({IMAGE_SIZE} // {patch})² = {(IMAGE_SIZE // patch) ** 2}"
            )


class Checkpoints(Section):
    """Saving and retention of checkpoints."""

    every: DurationField = Duration(amount=1.0, unit="epochs")
    """Interval between checkpoints; at most this much work is lost in a crash."""
    keep: Positive = 2
    """Number of newest checkpoints to keep; older ones are deleted."""
    keep_best: str | None = None
    """A metric of eval.jsonl or metrics.jsonl, such as pair_accuracy or loss; the checkpoint with its best value is
    kept as well."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Whether the highest or the lowest value of that metric is best."""
    retry_s: Annotated[Real, Field(ge=0.0)] = 300.0
    """Seconds for which a failed write of a checkpoint is retried, while training continues, before the run fails."""


class Log(Section):
    """Reports during training."""

    every_steps: Positive = 50
    """Optimizer steps between reports to metrics.jsonl and the terminal."""
    tensorboard: bool = False
    """Whether metrics are written to TensorBoard event files in <run>/tensorboard as well; needs pip install
    'lafs-ray[tensorboard]'."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics as well; needs pip install 'lafs-ray[wandb]'. Without a
    network: WANDB_MODE=offline."""
    mlflow: str | None = None
    """Tracking URI of MLflow that gets the metrics as well, such as http://host:5000 or sqlite:///mlflow.db; needs pip
    install 'lafs-ray[mlflow]'."""


class Monitoring(Section):
    """Health checks during training; a non-finite loss or gradient always stops the run."""

    wait_share: Rate = 0.2
    """Fraction of the time that training may wait for its input before a warning names the slow stage and the CPUs it
    needs; 0 never warns."""


class Compute(Section):
    """Workers and devices of the training."""

    workers: Count = 1
    """Ray Train workers, one per GPU; 0 is debug mode: one process without Ray, where pdb works."""
    min_workers: Positive | None = None
    """Minimum workers (elastic training): Ray Train runs as many workers as there is room for, up to compute.workers,
    and restarts them when that changes. null: always compute.workers."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Device of each worker."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the networks (autocast); weights, loss and optimizer stay float32. Many CPUs are far slower in
    bfloat16: a warning at the start says so."""
    compile: bool | None = None
    """Whether to compile the transformer with torch.compile; null: on a GPU, as it is slower on a CPU. If that fails, a
    warning says why and the run continues without. Changes the random numbers of dropout."""
    reduce_precision: Literal["bfloat16", "float32"] = "float32"
    """Precision in which workers add up their gradients: bfloat16 sends half as much, and rounds."""
    activation_checkpointing: bool = False
    """Whether the backward pass recomputes each transformer block instead of storing its activations: larger
    micro-batches fit, for the time of one more forward pass; results do not change."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=4096)] = 1
    """CPUs that Ray reserves for each training worker, in addition to its ingest; also its torch threads."""
    gpus_per_worker: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """GPUs that Ray reserves for a worker; below 1, trials of a sweep share GPUs, and a run has one worker."""
    max_failures: Count = 3
    """Worker failures before the run fails; each restart resumes from the newest checkpoint."""
    timeout_s: Annotated[Real, Field(gt=0.0)] = 600.0
    """Timeout of collective operations, in seconds."""
    node_labels: NodeLabels = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes for training workers, such as {market: on-demand}; empty: all nodes with GPUs."""
    nodes_wait_s: Annotated[Real, Field(ge=0.0)] = 1800.0
    """Seconds to wait for nodes from an autoscaler; without an autoscaler, a cluster that is too small is an error at
    once."""

    @model_validator(mode="after")
    def _ranks_have_a_gpu_each(self) -> Compute:
        if self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker: {self.gpus_per_worker:g} with {self.workers} workers, but "
                "NCCL needs one GPU per rank; set it to 1, or workers: 1"
            )
        return self

    @property
    def worker_counts(self) -> range:
        """Possible numbers of workers, fewest first."""
        return range(self.min_workers or max(self.workers, 1), max(self.workers, 1) + 1)

    @model_validator(mode="after")
    def _range_of_workers(self) -> Compute:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers: {self.min_workers}, more than compute.workers = {self.workers}")
        return self


class Ingest(Section):
    """The Ray Data processes that read and preprocess; unused in debug mode."""

    actors_per_worker: Annotated[int, Field(ge=1, le=4096)] = 4
    """Preprocessing actors for each training worker."""
    cpus_per_actor: Annotated[Real, Field(gt=0.0)] = 1.0
    """CPUs that Ray reserves for each preprocessing actor."""
    prefetch_batches: Positive = 2
    """Shuffle blocks (256 faces, 33 MB) fetched ahead of the training step."""
    blocks_per_execution: Positive = 2048
    """Shuffle blocks of a worker that Ray Data plans at once; for the next ones its actors start again, where CPUs are
    free while the last of these are trained on. More take longer to plan at the start of a run."""
    node_labels: NodeLabels = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes that read and preprocess, such as {pool: cpu} to keep the CPUs of GPU nodes free; empty: all
    nodes."""

    @property
    def cpus(self) -> float:
        """CPUs that the ingest of one training worker reserves: preprocessing and reading."""
        return self.actors_per_worker * self.cpus_per_actor + READING_CPUS

    @property
    def reads_at_once(self) -> int:
        """Read tasks that run at once for one training worker, each in a process of its own.

        No more than actors: a face takes a read task less time than an actor, also from an object store.
        """
        return min(int(READING_CPUS / CPUS_PER_READ), self.actors_per_worker)


class OnlineEval(Section):
    """Online evaluation of checkpoints during training; off unless pairs or identities is set."""

    pairs: AbsolutePath | None = None
    """Pair file (.bin) to evaluate checkpoints on; results go to eval.jsonl."""
    identities: AbsolutePath | None = None
    """Labeled set (.rec) for nearest-neighbor evaluation; not a large training set, as the cost grows with the square
    of its images."""
    every: DurationField = Duration(amount=1.0, unit="epochs")
    """Interval between evaluations; the last checkpoint is always evaluated."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """Color order of the decoded images of these files."""
    device: Literal["cuda", "cpu"] = "cpu"
    """Device of the evaluation; cuda needs a GPU in addition to those of the workers. Debug mode uses
    compute.device."""
    cpus: Positive = 1
    """CPUs that Ray reserves for the evaluation, in addition to training and ingest."""
    wait_s: Annotated[Real, Field(ge=0.0)] = 600.0
    """Seconds that the end of the run waits for the last evaluations."""

    @property
    def enabled(self) -> bool:
        """Whether there is anything to evaluate checkpoints on."""
        return self.pairs is not None or self.identities is not None

    @model_validator(mode="after")
    def _interval_is_positive(self) -> OnlineEval:
        if self.every.amount <= 0:
            raise ValueError("online_eval.every: must be more than 0")
        return self


class TrainConfig(Section):
    """The settings that stage 1, pretraining and finetuning have in common."""

    run: Annotated[Run, Tuning.OPERATIONAL]
    """Name, storage and seed."""
    data: Data
    """The faces."""
    model: Model = Model()
    """The networks."""
    duration: DurationField
    """Length of the run, in epochs or steps."""
    batch_size: Positive
    """Global batch: faces in one optimizer step, over all workers and micro-batches."""
    accumulation: Positive = 1
    """Micro-batches in one optimizer step (gradient accumulation)."""
    checkpoints: Annotated[Checkpoints, Tuning.OPERATIONAL] = Checkpoints()
    """Saving and retention."""
    log: Annotated[Log, Tuning.OPERATIONAL] = Log()
    """Reporting."""
    monitoring: Annotated[Monitoring, Tuning.OPERATIONAL] = Monitoring()
    """Health checks."""
    compute: Annotated[Compute, Tuning.OPERATIONAL] = Compute()
    """Workers and devices."""
    ingest: Annotated[Ingest, Tuning.OPERATIONAL] = Ingest()
    """Ray Data."""
    online_eval: Annotated[OnlineEval, Tuning.OPERATIONAL] = OnlineEval()
    """Online evaluation."""

    @property
    def needed_cpus(self) -> float:
        """CPUs that Ray reserves for the run; of an elastic run with the fewest workers."""
        online_eval = self.online_eval.cpus if self.online_eval.enabled else 0
        per_worker = self.compute.cpus_per_worker + self.ingest.cpus
        return self.compute.worker_counts[0] * per_worker + online_eval

    @property
    def micro_batch(self) -> int:
        """Faces in one micro-batch of one worker."""
        return self.batch_size // (max(self.compute.workers, 1) * self.accumulation)

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        for workers in self.compute.worker_counts:
            if self.batch_size % (workers * self.accumulation):
                raise ValueError(
                    f"batch_size: {self.batch_size} is not a multiple of {workers} workers × "
                    f"{self.accumulation} micro-batches = {workers * self.accumulation}"
                )
        return self

    @model_validator(mode="after")
    def _duration_is_a_length(self) -> TrainConfig:
        if self.duration.unit == "run" or self.duration.amount <= 0:
            raise ValueError(f"duration: {self.duration} - must be a positive number of epochs or steps")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_apart(self) -> TrainConfig:
        if self.checkpoints.every.amount <= 0:
            raise ValueError("checkpoints.every: must be more than 0")
        return self

    @model_validator(mode="after")
    def _ranks_wait_long_enough(self) -> TrainConfig:
        retry_s, timeout_s = self.checkpoints.retry_s, self.compute.timeout_s
        if self.compute.workers > 1 and retry_s >= timeout_s:
            raise ValueError(
                f"checkpoints.retry_s: {retry_s:g}, but other workers time out after "
                f"compute.timeout_s = {timeout_s:g}; reduce the first or increase the second"
            )
        return self
