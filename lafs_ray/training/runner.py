"""One rank's run: restore the newest checkpoint, train, report and save.

Debug mode calls `run_rank` once in the driver process; each Ray Train worker calls it with its own rank and its own
stream of batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import ON_CPU, TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, UserError
from lafs_ray.training.checkpoint.async_writer import CheckpointWriter
from lafs_ray.training.checkpoint.metrics_log import MetricsLog
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.checkpoint.sharded_state import broadcast_state
from lafs_ray.training.compile import compile_training, should_compile, slow_arithmetic
from lafs_ray.training.cost import require_memory
from lafs_ray.training.distributed import broadcast_from_first, count_ranks, gather_lines, share_failure
from lafs_ray.training.fingerprint import crop_fingerprint
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.monitoring.monitor import Monitor
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite
from lafs_ray.training.prepare import RunInputs
from lafs_ray.training.run_request import RunRequest
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.train_loop import train
from lafs_ray.training.train_step import TrainState

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Return whether PyTorch sees a GPU on this machine."""
    return torch.cuda.is_available()


def training_device(config: TrainConfig, local_rank: int = 0) -> torch.device:
    """Return the device that this rank trains on.

    Raises:
        ConfigError: compute.device is cuda and PyTorch sees no GPU.
    """
    if config.compute.device == "cpu":
        return torch.device("cpu")
    if not has_gpu():
        raise ConfigError(
            "compute.device",
            found="cuda, but PyTorch sees no GPU here",
            expected="a machine with an NVIDIA GPU and a CUDA build of PyTorch",
            fix=f"run there, or set {ON_CPU} (docs/routes.md has configurations for a CPU)",
        )
    return torch.device("cuda", local_rank)


def run_rank(
    inputs: RunInputs,
    stream: Callable[[int, int], Iterator[StepBatch]],
    *,
    device: torch.device,
    rank: int = 0,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    hooks: Hooks | None = None,
) -> None:
    """Restore the newest checkpoint and train to the end of the run, or until it is stopped.

    Args:
        inputs: the checked inputs of the run.
        stream: makes this rank's batches of steps first…stop-1.
        device: where to train.
        rank: this rank; rank 0 writes checkpoints and metrics.
        wrap: puts the trained network into DDP.
        hooks: the engine's callbacks.

    Raises:
        ConfigError: a micro-batch does not fit in the GPU's memory.
        TrainingError: a step was not finite, or the networks collapse; see `Monitor`.
        SharedFailure: another error of one of several ranks, on all of them, after saving; see `train`.
    """
    config, length, hooks = inputs.config, inputs.length, hooks or Hooks()
    torch.set_num_threads(config.compute.cpus_per_worker)
    if isinstance(config, PretrainConfig):
        require_memory(config, device, inputs.init_weights.frozen_architecture)
    what = config, inputs.sampler, inputs.num_classes, inputs.init_weights
    training = build_training(*what, device, rank, count_ranks())
    first_step = restore(training, inputs.folder(), rank)
    warning = slow_arithmetic(training.precision, device) if rank == 0 else ""
    if warning:
        logger.warning(warning)
    if should_compile(config, device):
        compile_training(training, config)
    training.network = wrap(training.network)
    with Monitor(config, length, inputs.folder().uri, first_step, rank) as monitor:
        recorder = Recorder(inputs, training, first_step, hooks, monitor)
        if first_step == length.total_steps:
            return
        try:
            with recorder:
                train(
                    training,
                    _announced(stream(first_step, length.total_steps), config, rank),
                    Meter(config.batch_size),
                    last_step=length.total_steps,
                    report=recorder.report,
                    report_every=config.log.every_steps,
                    save=recorder.save,
                    save_every=length.save_every,
                    poll_request=hooks.run_request,
                    check=recorder.check,
                )
                recorder.finish()
        except NonFinite as found:
            raise monitor.explain(found, inputs.faces.shard_uris) from None


def _announced(batches: Iterator[StepBatch], config: TrainConfig, rank: int) -> Iterator[StepBatch]:
    """Pass batches on, and log on rank 0 that the first step is done: the first report may be far away."""
    started = time.monotonic()
    for number, batch in enumerate(batches):
        if number == 1 and rank == 0 and config.log.every_steps > 1:
            took = time.monotonic() - started
            logger.info("the first step took %.1f s", took, extra={"first_step": batch.step})
        yield batch


def restore(training: TrainState, folder: RunDir, rank: int) -> int:
    """Load the newest checkpoint; rank 0 chooses and reads it, so that all ranks begin at one step.

    Returns:
        The steps done; 0 for a new run.
    """
    checkpoint = folder.latest() if rank == 0 else None
    step = broadcast_from_first(0 if checkpoint is None else int(checkpoint["step"]))
    if step == 0:
        return 0
    # Sent from rank to rank: all of them reading it would keep the storage busy, of 64 ranks with 90 GB.
    training.load_state_dict(broadcast_state(checkpoint), folder.checkpoint_uri(step))
    return step


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the engine.

    Args:
        on_report: gets each report; called on rank 0.
        after_save: gets the report of the step; called on every rank at each checkpoint, which may still be on its way
            to the storage.
        after_write: gets the step of a checkpoint that the storage has; called on rank 0, between steps.
        protected_steps: returns steps of checkpoints that are being read and must not be deleted; called on rank 0, by
            the writer's thread.
        run_request: returns whether this rank shall save or stop now; called after every step.
    """

    on_report: Callable[[dict[str, Any]], None] = lambda _: None
    after_save: Callable[[dict[str, Any]], None] = lambda _: None
    after_write: Callable[[int], None] = lambda _: None
    protected_steps: Callable[[], Collection[int]] = tuple
    run_request: Callable[[], RunRequest] = lambda: RunRequest.NOTHING


class Recorder:
    """Reports and checkpoints of one rank; only rank 0 writes and logs.

    What rank 0 alone meets here is raised by `check`, so that the other ranks do not wait for it. `finish` waits for
    the last checkpoint; where an error ends the `with` block, its end does.

    Args:
        inputs: of the run.
        training: the run on this rank.
        first_step: where it continues.
        hooks: the engine's callbacks.
        monitor: gets every report.
    """

    def __init__(
        self, inputs: RunInputs, training: TrainState, first_step: int, hooks: Hooks, monitor: Monitor
    ) -> None:
        self._inputs, self._training, self._folder = inputs, training, inputs.folder()
        self._hooks, self._monitor = hooks, monitor
        self._last: dict[str, Any] = {}
        self._reported = set(training.skipped)
        self._fingerprints = set(training.fingerprints)
        self._log: MetricsLog | None = None
        self._writer: CheckpointWriter | None = None
        self._failure: Exception | None = None
        if training.rank == 0:
            self._log = MetricsLog(filesystem.join(self._folder.uri, "metrics.jsonl"), first_step)
            self._writer = CheckpointWriter(self._write, inputs.config.checkpoints.retry_s)
            if first_step:
                name, total = inputs.config.run.name, inputs.length.total_steps
                logger.info("continuing %s at step %d of %d", name, first_step, total)
            if first_step < inputs.length.total_steps:
                logger.info("crops have fingerprint %s on this machine", crop_fingerprint())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        try:
            self._after_write(self._writer.close(hurry=kind is not None))
        except UserError as error:
            # The error that ends the run matters more than the loss of the last checkpoint.
            logger.warning("the last checkpoint was not written: %s", error)

    def finish(self) -> None:
        """Wait until the last checkpoint is written; a collective operation.

        Raises:
            UserError, SharedFailure: it could not be written.
        """
        self._attempt(lambda: self._after_write(self._writer.wait() if self._writer is not None else None))
        if (shared := share_failure(self._failure)) is not None:
            raise shared

    def check(self) -> None:
        """Collect the result of the writer; called between steps.

        Raises:
            UserError: a checkpoint or a report could not be written.
        """
        if self._failure is not None:
            # Once: the loop saves, and what fails then must not hide it.
            failure, self._failure = self._failure, None
            raise failure
        if self._writer is not None:
            self._after_write(self._writer.collect())

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do what rank 0 alone does, and keep the first exception for `check`."""
        try:
            action()
        except Exception as error:  # of any kind: the other ranks wait
            self._failure = self._failure or error

    def report(self, line: dict[str, Any]) -> None:
        """Write a line of metrics and pass it to the monitor; a collective operation.

        Raises:
            TrainingError: the run must end here; this step remains to be saved.
        """
        training = self._training
        training.skipped = gather_lines(training.skipped)
        training.fingerprints = gather_lines(training.fingerprints)
        self._compare_fingerprints()
        self._last.update(line, skipped_records=len(training.skipped))
        damaged = sorted(training.skipped - self._reported)
        self._reported.update(training.skipped)
        if self._log is not None:
            self._attempt(self._write_report)
        self._monitor.report(dict(self._last), damaged)

    def _write_report(self) -> None:
        assert self._log is not None, "only rank 0 writes"
        self._check_best()
        self._log.write(self._last)
        self._hooks.on_report(dict(self._last))

    def _compare_fingerprints(self) -> None:
        """Log once that crops come from a machine whose bits differ from those before."""
        found = self._training.fingerprints - self._fingerprints
        if found and len(self._training.fingerprints) > 1 and self._training.rank == 0:
            logger.warning(
                "crops come from machines with different fingerprints (%s): bits may differ from "
                "here on, as their CPUs or versions of torch, OpenCV or numpy round otherwise",
                ", ".join(sorted(self._training.fingerprints)),
            )
        self._fingerprints |= found

    def _check_best(self) -> None:
        """Refuse a checkpoints.keep_best that neither this report nor online evaluation has."""
        config = self._inputs.config
        metric = config.checkpoints.keep_best
        if metric is None or metric in self._last:
            return
        if not (config.online_eval.enabled and metric.startswith(("pair_", "identity_"))):
            raise ConfigError(
                "checkpoints.keep_best",
                found=f"{metric}, which this run does not report",
                expected="a metric of its online evaluation, or one of " + ", ".join(sorted(self._last)),
                fix="correct the name, or set online_eval.pairs or online_eval.identities",
            )

    def save(self, step: int) -> None:
        """Begin to write a checkpoint, a collective operation, and call `after_save`."""
        if self._writer is not None:
            # Before the copy is made: memory holds one, and `after_write` is called before `protected_steps`.
            writer = self._writer
            self._attempt(lambda: self._after_write(writer.wait()))
        state = self._training.state_dict()
        if self._writer is not None:
            landmarks = self._inputs.frozen_landmarks()
            self._writer.begin(step, {**state, "landmarks": landmarks})
        self._hooks.after_save(dict(self._last))

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        """Write metrics and checkpoint, in the writer's thread."""
        assert self._log is not None, "only rank 0 writes"
        # First the metrics: lines beyond the newest checkpoint are dropped, missing ones lost.
        self._log.flush()
        keep = self._inputs.config.checkpoints.keep
        self._folder.save(step, state, keep, self._hooks.protected_steps())
        self._folder.restore(self._inputs.origin())

    def _after_write(self, step: int | None) -> None:
        if step is not None:
            self._hooks.after_write(step)


def run_local(inputs: RunInputs, hooks: Hooks | None = None) -> None:
    """Train to the end of the run in this process, without Ray (debug mode)."""
    preprocess = inputs.preprocessor()

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return local_stream(inputs.faces, inputs.sampler, preprocess, first, stop)

    run_rank(inputs, stream, device=training_device(inputs.config), hooks=hooks)
