"""A run, from its checked inputs to its last checkpoint, as seen by one rank.

`open_job` finds every mistake that can be found before a worker is started; `run_rank` restores,
trains, reports and saves. Debug mode calls it once in the driver process; each Ray Train worker
calls it with its own rank and its own stream of batches.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.sections import Job
from lafs_ray.data import storage
from lafs_ray.data.faces import FaceSet, open_faces
from lafs_ray.data.plan import OrderPlan
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.build import (
    Length,
    build_cut,
    build_landmark_network,
    build_plan,
    build_training,
    load_landmark_weights,
    run_length,
)
from lafs_ray.training.loop import Training, train
from lafs_ray.training.meter import Meter, MetricsLog, from_first_rank, share_lines
from lafs_ray.training.state import RunFolder, load_checkpoint
from lafs_ray.training.stream import Cropper, StepBatch, local_stream


@dataclass(frozen=True)
class JobInputs:
    """Everything a rank needs, checked; it travels to other machines.

    Args:
        config: the run's configuration.
        faces: the opened set.
        plan: order of its records.
        length: of the run.
        num_classes: identities of a labelled run.
        landmark_state: weights of the frozen landmark CNN of a pretraining run.
    """

    config: Job
    faces: FaceSet
    plan: OrderPlan
    length: Length
    num_classes: int | None
    landmark_state: dict[str, Tensor] | None

    def landmark_network(self) -> nn.Module | None:
        """A fresh landmark CNN with the run's weights, in eval mode; None where it has none."""
        if self.landmark_state is None:
            return None
        assert isinstance(self.config, PretrainConfig)
        network = build_landmark_network(self.config)
        network.load_state_dict(self.landmark_state)
        return network.eval().requires_grad_(requires_grad=False)

    def cropper(self) -> Cropper:
        """What decodes and cuts; every ingest process makes its own."""
        config = self.config
        cut = build_cut(config, self.landmark_network())
        source = config.data.colour_order, config.run.seed
        return Cropper(self.faces, *source, cut, num_classes=self.num_classes)

    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.config, self.faces.fingerprint)


def open_job(config: Job) -> JobInputs:
    """Open the set, read the landmark weights and claim the run's folder.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    config = _with_absolute_paths(config)
    faces = open_faces(config.data.path, config.data.colour_order)
    plan = build_plan(config, faces)
    length = run_length(config, plan)
    num_classes = _num_classes(config, faces) if isinstance(config, FinetuneConfig) else None
    weights = load_landmark_weights(config) if isinstance(config, PretrainConfig) else None
    inputs = JobInputs(config, faces, plan, length, num_classes, weights)
    inputs.folder().claim(_digest(weights, config))
    return inputs


def _with_absolute_paths(config: Job) -> Job:
    """The configuration as workers need it: Ray starts them in folders of its own."""
    run = config.run.model_copy(update={"storage": storage.absolute(config.run.storage)})
    data = config.data.model_copy(update={"path": storage.absolute(config.data.path)})
    return config.model_copy(update={"run": run, "data": data})


def _digest(weights: dict[str, Tensor] | None, config: Job) -> str | None:
    """Hash of the landmark weights that come from a file; None where they do not."""
    if not isinstance(config, PretrainConfig) or config.landmarks.weights == "untrained":
        return None
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted((weights or {}).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest() if weights else None


def _num_classes(config: Job, faces: FaceSet) -> int:
    labels = faces.labels()
    highest, expected = int(labels.max()), faces.num_identities
    num_classes = expected if expected is not None else highest + 1
    # Those without a label are damaged records as any other: the cropper replaces and names them.
    unlabelled = int((labels < 0).sum())
    if highest < 0 or highest >= num_classes or unlabelled > config.data.max_bad_records:
        raise DataError(
            config.data.path,
            found=f"labels up to {highest}; {unlabelled} of {len(labels)} records have none",
            expected=f"labels from 0 to {max(num_classes, 1) - 1}, missing in at most "
            f"{config.data.max_bad_records} records (data.max_bad_records)",
            fix="number the identities from 0 without gaps, or repair the set's header",
        )
    return num_classes


def training_device(config: Job, local_rank: int = 0) -> torch.device:
    """Where this rank trains.

    Raises:
        ConfigError: the configuration asks for a GPU and there is none.
    """
    if config.compute.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "compute.device",
            found="cuda, but PyTorch sees no GPU here",
            expected="a machine with an NVIDIA GPU and a CUDA build of PyTorch",
            fix="run there, or set compute.device=cpu compute.precision=float32 to debug",
        )
    return torch.device("cuda", local_rank)


def run_rank(
    inputs: JobInputs,
    stream: Callable[[int, int], Iterator[StepBatch]],
    *,
    device: torch.device,
    rank: int = 0,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    say: Callable[[str], None] = print,
    after_save: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Restore the newest checkpoint and train to the end of the run.

    Args:
        inputs: the checked job.
        stream: makes this rank's batches of steps first…stop-1.
        device: where to train.
        rank: this rank; rank 0 writes checkpoints and metrics.
        wrap: puts the trained network into DDP.
        say: prints a line of progress; called on rank 0.
        after_save: gets the last report; called on every rank after each checkpoint.
    """
    config, length = inputs.config, inputs.length
    torch.set_num_threads(config.compute.cpus_per_worker)
    training = build_training(
        config, inputs.plan, inputs.num_classes, inputs.landmark_network(), device, rank
    )
    first_step = restore(training, inputs.folder(), rank)
    training.network = wrap(training.network)
    recorder = Recorder(inputs, training, first_step, say, after_save)
    if first_step < length.total_steps:
        train(
            training,
            stream(first_step, length.total_steps),
            Meter(config.batch_size),
            last_step=length.total_steps,
            report=recorder.report,
            report_every=config.log.every_steps,
            save=recorder.save,
            save_every=length.save_every,
        )


def restore(training: Training, folder: RunFolder, rank: int) -> int:
    """Load the newest checkpoint; rank 0 chooses it, so that all ranks begin at one step.

    Returns:
        The steps done; 0 for a new run.
    """
    checkpoint = folder.latest() if rank == 0 else None
    step = from_first_rank(0 if checkpoint is None else int(checkpoint["step"]))
    if step == 0:
        return 0
    source = folder.checkpoint_uri(step)
    training.load_state_dict(checkpoint or load_checkpoint(source), source)
    return step


class Recorder:
    """What a rank does with reports and checkpoints; rank 0 writes and speaks for all.

    Args:
        inputs: the job.
        training: the run on this rank.
        first_step: where it continues.
        say: prints a line of progress.
        after_save: gets the last report after each checkpoint.
    """

    def __init__(
        self,
        inputs: JobInputs,
        training: Training,
        first_step: int,
        say: Callable[[str], None],
        after_save: Callable[[dict[str, Any]], None],
    ) -> None:
        self._inputs, self._training, self._folder = inputs, training, inputs.folder()
        self._say, self._after_save = say, after_save
        self._last: dict[str, Any] = {}
        self._named = set(training.skipped)
        self._progress = Progress(inputs.length, first_step)
        self._log: MetricsLog | None = None
        if training.rank == 0:
            self._log = MetricsLog(storage.join(self._folder.uri, "metrics.jsonl"), first_step)
            if first_step:
                name, total = inputs.config.run.name, inputs.length.total_steps
                say(f"continuing {name} at step {first_step} of {total}")

    def report(self, line: dict[str, Any]) -> None:
        """Write a line of metrics; a collective operation."""
        training = self._training
        training.skipped = share_lines(training.skipped)
        self._last.update(line, skipped_records=len(training.skipped))
        if self._log is None:
            return
        for skipped in sorted(training.skipped - self._named):
            self._say(f"skipped a damaged record: {skipped}")
        self._named.update(training.skipped)
        self._log.write(self._last)
        self._say(self._progress.line(self._last))

    def save(self, step: int) -> None:
        """Write a checkpoint; every rank then calls `after_save`."""
        if self._log is not None:
            # First the metrics: lines beyond the newest checkpoint are dropped, missing ones lost.
            self._log.flush()
            state = {**self._training.state_dict(), "landmarks": self._inputs.landmark_state}
            self._folder.save(step, state, self._inputs.config.checkpoints.keep)
        self._after_save(dict(self._last))


def run_local(inputs: JobInputs, say: Callable[[str], None] = print) -> None:
    """Debug mode: the whole run in this process, without Ray."""
    crop = inputs.cropper()

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return local_stream(inputs.faces, inputs.plan, crop, first, stop)

    run_rank(inputs, stream, device=training_device(inputs.config), say=say)


class Progress:
    """Lines of progress that a person can read.

    Args:
        length: of the run.
        first_step: where this process began.
    """

    def __init__(self, length: Length, first_step: int) -> None:
        self._length, self._first_step = length, first_step
        self._start = time.monotonic()

    def line(self, report: dict[str, Any]) -> str:
        """Step, epoch, loss, learning rate, speed, waiting and the time still to go."""
        step, total = report["step"], self._length.total_steps
        seconds_a_step = (time.monotonic() - self._start) / max(step - self._first_step, 1)
        remaining = round((total - step) * seconds_a_step)
        return (
            f"step {step:>{len(str(total))}}/{total}  epoch {report['epoch']}  "
            f"loss {report['loss']:.4f}  lr {report['lr']:.2e}  "
            f"{report['images_per_s']:.0f} images/s  wait {report['wait_share']:.0%}  "
            f"left {remaining // 3600}:{remaining // 60 % 60:02}:{remaining % 60:02}"
        )
