"""Online evaluation of a run's checkpoints, one at a time: a line each in `<run>/eval.jsonl`.

On Ray an evaluation is a task with its own CPUs, started by the driver, so training does not wait for it and the
failure of a worker does not end it. In debug mode the run waits. A failed evaluation is logged and never ends the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

from lafs_ray.config.train import OnlineEval, TrainConfig
from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError, find_user_error
from lafs_ray.evaluation.embed import chunks
from lafs_ray.evaluation.neighbors import check_possible
from lafs_ray.evaluation.protocols import Device, evaluate_identities, evaluate_pairs, local_embedding
from lafs_ray.evaluation.results import EvalResult
from lafs_ray.training.checkpoint.inference import load_embedder
from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.prepare import RunInputs

logger = logging.getLogger(__name__)

# Starts the evaluation of the checkpoint at a URI.
StartEvaluation = Callable[[str], "Future[dict[str, float]]"]

# Names in eval.jsonl of the metrics reported.
_METRICS = {"accuracy": "pair_accuracy", "AUC": "pair_auc", "1-NN": "identity_accuracy"}


def check_online_eval(online_eval: OnlineEval) -> None:
    """Read the files of a run's online evaluation, so that it fails before it starts.

    Raises:
        DataError: a file is missing or damaged, or a face in the pair file does not decode.
    """
    if online_eval.pairs is not None:
        pairs = open_pairs(online_eval.pairs, online_eval.color_order)
        for start, stop in chunks(pairs.faces.num_images):
            pairs.faces.read(start, stop)
    if online_eval.identities is not None:
        check_possible(open_labeled(online_eval.identities, online_eval.color_order).labels, [1])


def evaluate_checkpoint(uri: str, online_eval: OnlineEval, device: Device) -> dict[str, float]:
    """Return the metrics of a checkpoint, with plain and with centered embeddings.

    Args:
        uri: the checkpoint.
        online_eval: what to evaluate it on.
        device: where to compute.

    Raises:
        UserError: the checkpoint or an evaluation file is missing or damaged.
    """
    start = time.perf_counter()
    metrics = {
        f"{name}{suffix}": value
        for result in evaluate_sets(uri, online_eval, device)
        for row, suffix in zip(result.rows, ("", "_centered"), strict=True)
        for metric, name in _METRICS.items()
        if (value := row.metrics.get(metric)) is not None
    }
    return {**metrics, "eval_s": time.perf_counter() - start}


def evaluate_sets(uri: str, online_eval: OnlineEval, device: Device) -> Iterator[EvalResult]:
    """Yield the result of a checkpoint on each file of `online_eval`; see `evaluate_checkpoint`."""
    embeddings = {"network": local_embedding(load_embedder(uri), device)}
    if online_eval.pairs is not None:
        yield evaluate_pairs(open_pairs(online_eval.pairs, online_eval.color_order), embeddings)
    if online_eval.identities is not None:
        faces = open_labeled(online_eval.identities, online_eval.color_order)
        yield evaluate_identities(faces, embeddings)


def evaluate_in_process(config: TrainConfig) -> StartEvaluation:
    """Return a function that evaluates in this process while the caller waits (debug mode)."""

    def start(uri: str) -> Future[dict[str, float]]:
        future: Future[dict[str, float]] = Future()
        try:
            future.set_result(evaluate_checkpoint(uri, config.online_eval, config.compute.device))
        except Exception as error:
            future.set_exception(error)
        return future

    return start


def evaluated_steps(folder: RunDir) -> set[int]:
    """Return the steps of a run whose checkpoints have been evaluated."""
    return {line["step"] for line in read_metrics(filesystem.join(folder.uri, "eval.jsonl"))}


class OnlineEvaluator:
    """Starts the evaluations of one run and collects their results, in its driver.

    Args:
        inputs: of the run.
        start: starts the evaluation of a checkpoint.
    """

    def __init__(self, inputs: RunInputs, start: StartEvaluation) -> None:
        self._folder, self._length = inputs.folder(), inputs.length
        self._start = start
        online_eval, length = inputs.config.online_eval, inputs.length
        self._every = max(online_eval.every.steps(length.steps_per_epoch, length.total_steps), 1)
        self._wait_s, self._keep = online_eval.wait_s, inputs.config.checkpoints.keep
        self._running: tuple[int, Future[dict[str, float]]] | None = None
        uri = filesystem.join(self._folder.uri, "eval.jsonl")
        self._newest = max(self._folder.steps(), default=0)
        # Lines of steps that the run will repeat are dropped, as in metrics.jsonl.
        self._log = MetricsLog(uri, self._newest)
        self._evaluated = evaluated_steps(self._folder)

    def catch_up(self) -> None:
        """Evaluate the newest checkpoint, if an earlier process ended before it did."""
        if self._newest:
            self.saved(self._newest)

    def saved(self, step: int) -> None:
        """Evaluate a new checkpoint if it is due and no other evaluation is running."""
        self.collect()
        if not self._is_due(step) or step in self._evaluated:
            return
        if self._running is not None:
            # The last checkpoint is evaluated in `finish`.
            if step < self._length.total_steps:
                logger.info("evaluation of step %d skipped: that of step %d is still running", step, self._running[0])
            return
        self._evaluated.add(step)
        self._running = (step, self._start(self._folder.checkpoint_uri(step)))
        self.collect()

    @property
    def running(self) -> set[int]:
        """Steps of checkpoints being evaluated, not to be deleted."""
        return set() if self._running is None else {self._running[0]}

    def collect(self, wait_s: float = 0.0) -> None:
        """Write and log the metrics of the running evaluation, if it ends within `wait_s`."""
        if self._running is None:
            return
        step, future = self._running
        wait([future], timeout=wait_s)
        if not future.done():
            return
        self._running = None
        try:
            metrics = future.result()
            self._log.write({"step": step, **metrics})
            self._log.flush()
        except Exception as error:
            reason = find_user_error(error) or repr(error)
            logger.warning("evaluation of step %d failed: %s", step, reason)
            return
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("evaluation of step %d: %s", step, shown)

    def finish(self) -> None:
        """Wait up to online_eval.wait_s for the running evaluation and the last checkpoint's."""
        deadline = time.monotonic() + self._wait_s
        self.collect(self._wait_s)
        if self._running is None:
            self.saved(self._length.total_steps)
            self.collect(max(deadline - time.monotonic(), 0.0))
        if self._running is not None:
            logger.warning(
                "evaluation of step %d abandoned: not finished after %g s (online_eval.wait_s); "
                "evaluate the checkpoint with `lafs evaluate`",
                self._running[0],
                self._wait_s,
            )
        try:
            # Those that were protected for an evaluation, or that are no longer the best.
            self._folder.prune(self._length.total_steps, self._keep)
        except DataError as error:
            logger.warning("old checkpoints are kept: %s", error)

    def _is_due(self, step: int) -> bool:
        """Return whether an evaluation became due since the last checkpoint, or the run ends."""
        before = (step - 1) // self._length.save_every * self._length.save_every
        return step // self._every > before // self._every or step == self._length.total_steps
