"""The function that Ray Tune runs for a trial, in a process of its own.

With compute.workers=0 a trial trains in that process. Otherwise the process drives a `TorchTrainer` like a single run
does, and evaluates its checkpoints meanwhile.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Checkpoint

from lafs_ray.engine.ray_train import run_on_ray
from lafs_ray.errors import UserError
from lafs_ray.training.prepare import RunInputs
from lafs_ray.tuning.preflight import as_line
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.search_space import Settings
from lafs_ray.tuning.trial import Donor, TrialSpec, run_trial, train_here

_POLL_S = 1.0
_POINTER = "pointer.json"


def make_trainable(
    numbers: Sequence[int], make_spec: Callable[[int, Settings | None], TrialSpec], *, is_population: bool
) -> Callable[[dict[str, Any]], None]:
    """Return Tune's trainable for a batch, see `TrialBatch`."""

    def trainable(config: dict[str, Any]) -> None:
        number = trial_number(tune.get_context().get_trial_id(), numbers)
        spec = make_spec(number, config.get("settings"))
        checkpoint = tune.get_checkpoint()
        donor = None if checkpoint is None else _donor(checkpoint, spec.dir.uri)
        pointer_to = spec.dir.uri if is_population else None
        try:
            run_trial(spec, partial(_report, pointer_to), train_run, donor)
        except UserError as error:
            # A retry would fail in the same way, so Tune sees no failure.
            record = spec.dir.read()
            assert record is not None, "a trial's record is written before it starts"
            spec.dir.write(replace(record, status="failed", message=as_line(error)))

    return trainable


def trial_number(trial_id: str, numbers: Sequence[int]) -> int:
    """Return the number of a trial from Tune's id, which ends with its index in the batch."""
    return numbers[int(trial_id.rpartition("_")[2])]


def _report(pointer_to: str | None, report: Report, replayed: bool) -> None:
    """Report to Tune; in a population with a pointer to the checkpoint, for trials that copy it."""
    metrics = {**asdict(report), "replayed": replayed}
    if pointer_to is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _POINTER).write_text(json.dumps(asdict(Donor(pointer_to, report.report))))
        tune.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _donor(checkpoint: Checkpoint, own_uri: str) -> Donor | None:
    """Return the owner of a checkpoint; None for the trial's own, from which it resumes anyway."""
    with checkpoint.as_directory() as folder:
        donor = Donor(**json.loads((Path(folder) / _POINTER).read_text()))
    return None if donor.uri == own_uri else donor


def train_run(inputs: RunInputs, on_checkpoint: Callable[[int], None]) -> None:
    """Train a run as its configuration says: in this process, or on Ray Train workers.

    Training on workers is polled for checkpoints, and does not wait for the callback. If that raises, the thread stays
    behind; its workers end with this process, which Tune then ends.

    Raises:
        UserError: the workers met one.
    """
    if inputs.config.compute.workers == 0:
        train_here(inputs, on_checkpoint)
        return
    errors: list[BaseException] = []

    def train() -> None:
        try:
            run_on_ray(inputs)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train, daemon=True)
    folder, seen = inputs.folder(), set(inputs.folder().steps())
    thread.start()
    is_over = False
    while not is_over:
        thread.join(_POLL_S)
        is_over = not thread.is_alive()
        for step in folder.steps():
            if step not in seen:
                seen.add(step)
                on_checkpoint(step)
    if errors:
        raise errors[0]
