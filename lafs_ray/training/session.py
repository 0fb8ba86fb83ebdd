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
from lafs_ray.training.loop import train
from lafs_ray.training.meter import Meter, MetricsLog, share_lines
from lafs_ray.training.state import RunFolder
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
    faces = open_faces(config.data.path)
    plan = build_plan(config, faces)
    length = run_length(config, plan)
    num_classes = _num_classes(config, faces) if isinstance(config, FinetuneConfig) else None
    weights = load_landmark_weights(config) if isinstance(config, PretrainConfig) else None
    inputs = JobInputs(config, faces, plan, length, num_classes, weights)
    inputs.folder().claim(_digest(weights, config))
    return inputs


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
    config, length, folder = inputs.config, inputs.length, inputs.folder()
    torch.set_num_threads(config.compute.cpus_per_worker)
    training = build_training(
        config, inputs.plan, inputs.num_classes, inputs.landmark_network(), device, rank
    )
    checkpoint = folder.latest()
    first_step = 0
    if checkpoint is not None:
        first_step = checkpoint["step"]
        training.load_state_dict(checkpoint, folder.checkpoint_uri(first_step))
    training.network = wrap(training.network)
    log = MetricsLog(storage.join(folder.uri, "metrics.jsonl"), first_step) if rank == 0 else None
    if rank == 0 and first_step:
        say(f"continuing {config.run.name} at step {first_step} of {length.total_steps}")
    last_report: dict[str, Any] = {}
    named = set(training.skipped)
    progress = Progress(length, first_step)

    def report(line: dict[str, Any]) -> None:
        training.skipped = share_lines(training.skipped)
        last_report.update(line, skipped_records=len(training.skipped))
        if log is not None:
            for skipped in sorted(training.skipped - named):
                say(f"skipped a damaged record: {skipped}")
            named.update(training.skipped)
            log.write(last_report)
            say(progress.line(last_report))

    def save(step: int) -> None:
        if log is not None:
            # First the metrics: lines beyond the newest checkpoint are dropped, missing ones lost.
            log.flush()
            state = {**training.state_dict(), "landmarks": inputs.landmark_state}
            folder.save(step, state, config.checkpoints.keep)
        after_save(dict(last_report))

    if first_step < length.total_steps:
        train(
            training,
            stream(first_step, length.total_steps),
            Meter(config.batch_size),
            last_step=length.total_steps,
            report=report,
            report_every=config.log.every_steps,
            save=save,
            save_every=length.save_every,
        )


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
