"""The sections that every training job shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lafs_ray.config.loader import Duration, DurationField, Real, Section, Tuning

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[Real, Field(ge=0.0, le=1.0)]

# Ray's own rule for the values of labels, and for the names after the slash of a key.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
NodeLabels = dict[
    Annotated[str, Field(pattern=rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^{_LABEL}$")],
]

IMAGE_SIZE = 112

# CPUs that the ingest of a training worker reserves for reading, and those of one read task.
# Reading mostly waits for storage; a whole CPU for each task would take CPUs from preprocessing.
READING_CPUS, CPUS_PER_READ = 1.0, 0.25


class Run(Section):
    """What the run is called and where its results live."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the run; starting the same name again continues it."""
    storage: str = "runs"
    """Folder or URI under which `<name>/` keeps checkpoints, metrics and the resolved config; all
    nodes must reach it."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed of everything random: initial weights, order of records, augmentation, dropout."""


class Data(Section):
    """Which faces to read, and how."""

    path: Annotated[str, Tuning.OPERATIONAL]
    """A .rec file, a folder of them, a glob, or a URI (s3://, gs://) of one."""
    color_order: Annotated[Literal["rgb", "bgr"], Tuning.OPERATIONAL] = "rgb"
    """What the file's JPEGs decode to: rgb (insightface) or bgr (made by the reference's
    converter)."""
    chunk_records: Positive = 4
    """Neighboring records read together: 1 is a perfect shuffle, 256 suits sets already shuffled
    on slow storage."""
    max_bad_records: Annotated[Count, Tuning.OPERATIONAL] = 100
    """Damaged records that are skipped, each named in the log, before the run stops."""


class Model(Section):
    """The transformer and the landmarks that it reads."""

    size: Literal["base", "small", "tiny"] = "base"
    """Width and depth of the fViT: base as published, small and tiny for debugging and CPUs."""
    num_landmarks: Positive = 196
    """Landmarks, hence tokens, of a whole face; 14 x 14 in the paper."""
    patch_size: Annotated[int, Field(ge=2, le=56)] = 8
    """Side of the patch around each landmark, in pixels."""
    dropout: Annotated[Rate, Tuning.MUTABLE] = 0.1
    """Dropout of embedding, attention output and MLP."""
    drop_path: Annotated[Real, Field(ge=0.0, lt=1.0), Tuning.MUTABLE] = 0.1
    """Stochastic depth of both residual branches of every block."""
    init_std: Annotated[Real, Field(gt=0.0)] = 0.02
    """Deviation of initial positions and class token: 0.02 as in DINO; the released code has 1."""
    landmark_cnn: Annotated[str, Field(pattern=r"^(mobilenetv3|timm/.+)$")] = "mobilenetv3"
    """The landmark network: mobilenetv3 as published, or timm/<name> for any timm feature
    extractor."""
    landmark_cnn_width: Annotated[Real, Field(gt=0.0, le=2.0)] = 1.0
    """Channel multiplier of mobilenetv3; 1.0 as published."""
    landmark_start: Literal["grid", "random"] = "grid"
    """Where an untrained CNN's landmarks begin: near a regular grid, or anywhere (reference)."""

    def require_grid(self) -> None:
        """Raise a ValueError unless `num_landmarks` plain patches cover the image."""
        patch, total = self.patch_size, self.num_landmarks
        if IMAGE_SIZE % patch or (IMAGE_SIZE // patch) ** 2 != total:
            raise ValueError(
                f"model.num_landmarks: {total}, but a grid of {patch}-pixel patches on "
                f"{IMAGE_SIZE} pixels has ({IMAGE_SIZE} // {patch})² = {(IMAGE_SIZE // patch) ** 2}"
            )


class Checkpoints(Section):
    """When to save and what to keep."""

    every: DurationField = Duration(amount=1.0, unit="epochs")
    """Distance between checkpoints; at most this much work is lost to a crash."""
    keep: Positive = 2
    """Newest checkpoints kept; older ones are deleted."""
    keep_best: str | None = None
    """A figure of eval.jsonl or metrics.jsonl, such as pair_accuracy or loss: the checkpoint with
    the best one is kept as well, however old."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which value of that figure is best."""
    retry_s: Annotated[Real, Field(ge=0.0)] = 300.0
    """Seconds for which a checkpoint that the storage refuses is tried again, while the training
    goes on, before the run gives up."""


class Log(Section):
    """What is reported while training."""

    every_steps: Positive = 50
    """Optimizer steps between lines of metrics.jsonl and of the terminal."""
    tensorboard: bool = False
    """Whether the same figures go to TensorBoard's event files in <run>/tensorboard; needs the
    extra: pip install 'lafs-ray[tensorboard]'."""


class Monitoring(Section):
    """What looks after a run while it trains; what is not finite always stops it."""

    wait_share: Rate = 0.2
    """Share of the time that training may wait for its input before a warning names the slow stage
    and the CPUs that it would take; 0 never warns."""


class Compute(Section):
    """Where the training runs."""

    workers: Count = 1
    """Ray Train workers, one for each GPU; 0 is debug mode: one process without Ray, where pdb
    works."""
    min_workers: Positive | None = None
    """Workers that will do while nodes are missing: Ray Train then goes on with as many as there is
    room for, up to compute.workers, and starts them anew when that changes. null waits for all."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What each worker trains on."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the networks (autocast); weights, loss and optimizer stay float32. Many CPUs
    are far slower in bfloat16: a line at the start says so then."""
    compile: bool = False
    """Whether torch.compile makes code for the transformer; where it cannot, a line says why and
    the run goes on without. Dropout then draws other numbers."""
    activation_checkpointing: bool = False
    """Whether the backward pass computes each transformer block again in place of keeping all that
    it needs: larger micro-batches fit, for another forward pass of time; no number changes."""
    cpus_per_worker: Positive = 1
    """CPUs that Ray reserves for each training worker, besides those of its ingest; also its torch
    threads on CPU."""
    gpus_per_worker: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a GPU that Ray reserves for a worker; below 1, trials of a sweep share GPUs, and the
    run has one worker."""
    max_failures: Count = 3
    """Worker failures before a run gives up; each restart continues from the last checkpoint."""
    timeout_s: Annotated[Real, Field(gt=0.0)] = 600.0
    """Seconds a collective operation may wait for another rank before the run counts as failed."""
    node_labels: NodeLabels = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes that training workers may take, such as {market: on-demand};
    all nodes with GPUs, if there are none."""
    nodes_wait_s: Annotated[Real, Field(ge=0.0)] = 1800.0
    """Seconds that a run waits for nodes which an autoscaler has yet to bring; without an
    autoscaler too small a cluster is a mistake at once."""

    @model_validator(mode="after")
    def _ranks_have_a_gpu_each(self) -> Compute:
        if self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker: {self.gpus_per_worker:g} with {self.workers} workers, but "
                "NCCL wants a GPU for each rank; write 1, or workers: 1"
            )
        return self

    @property
    def worker_counts(self) -> range:
        """Numbers of processes that may share a batch."""
        return range(self.min_workers or max(self.workers, 1), max(self.workers, 1) + 1)

    @model_validator(mode="after")
    def _range_of_workers(self) -> Compute:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"compute.min_workers: {self.min_workers}, more than compute.workers = "
                f"{self.workers}"
            )
        return self


class Ingest(Section):
    """The Ray Data workers that decode and crop; unused in debug mode."""

    actors_per_worker: Positive = 4
    """Cropping processes for each training worker."""
    cpus_per_actor: Annotated[Real, Field(gt=0.0)] = 1.0
    """CPUs that Ray reserves for each cropping process."""
    prefetch_batches: Positive = 2
    """Blocks of 256 faces or fewer fetched ahead of the training step, 33 MB each."""
    node_labels: NodeLabels = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes that read and preprocess, such as {pool: cpu} to keep the CPUs of GPU
    nodes free; empty: all nodes."""

    @property
    def cpus(self) -> float:
        """CPUs that the ingest of one training worker reserves: preprocessing and reading."""
        return self.actors_per_worker * self.cpus_per_actor + READING_CPUS


class OnlineEval(Section):
    """What judges checkpoints while the training goes on; nothing unless a file is named."""

    pairs: str | None = None
    """Pair file (.bin) on which checkpoints are judged while the run goes on: eval.jsonl."""
    identities: str | None = None
    """Labeled set (.rec) on which they are judged by the nearest neighbor; not the training
    set, unless it is small: the price grows with the square of its images."""
    every: DurationField = Duration(amount=1.0, unit="epochs")
    """Distance between probes; the first checkpoint from there on is judged, and the last one."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """What the images of these files decode to."""
    device: Literal["cuda", "cpu"] = "cpu"
    """Where probes compute; cuda takes a GPU besides those of the workers. Debug mode probes on
    compute.device."""
    cpus: Positive = 1
    """CPUs that Ray reserves for probes, besides those of training and ingest."""
    wait_s: Annotated[Real, Field(ge=0.0)] = 600.0
    """Seconds that the end of the run waits for the last probes."""

    @property
    def enabled(self) -> bool:
        """Whether there is something to judge checkpoints on."""
        return self.pairs is not None or self.identities is not None

    @model_validator(mode="after")
    def _probes_are_apart(self) -> OnlineEval:
        if self.every.amount <= 0:
            raise ValueError("online_eval.every: must be more than 0")
        return self


class TrainConfig(Section):
    """A training job: the sections that stage 1, pretraining and finetuning have in common."""

    run: Annotated[Run, Tuning.OPERATIONAL]
    """Name, storage and seed."""
    data: Data
    """The faces."""
    model: Model = Model()
    """The networks."""
    duration: DurationField
    """Length of the run, in epochs or steps."""
    batch_size: Positive
    """Faces in one optimizer step, over all workers and micro-batches."""
    accumulation: Positive = 1
    """Micro-batches in one optimizer step."""
    checkpoints: Annotated[Checkpoints, Tuning.OPERATIONAL] = Checkpoints()
    """Saving and retention."""
    log: Annotated[Log, Tuning.OPERATIONAL] = Log()
    """Reporting."""
    monitoring: Annotated[Monitoring, Tuning.OPERATIONAL] = Monitoring()
    """Warnings."""
    compute: Annotated[Compute, Tuning.OPERATIONAL] = Compute()
    """Workers and devices."""
    ingest: Annotated[Ingest, Tuning.OPERATIONAL] = Ingest()
    """Ray Data."""
    online_eval: Annotated[OnlineEval, Tuning.OPERATIONAL] = OnlineEval()
    """Judging checkpoints on the way."""

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
            raise ValueError(f"duration: {self.duration} - write epochs or steps, more than 0")
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
                f"checkpoints.retry_s: {retry_s:g}, but workers wait for each other for "
                f"compute.timeout_s = {timeout_s:g} only; lower the first or raise the second"
            )
        return self
