"""A trial as Ray Tune runs it, in a process of its own.

With compute.workers=0 a trial trains in that process; otherwise the process drives a
`TorchTrainer` as a single run does, and judges its checkpoints beside it.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Checkpoint

from lafs_ray.engine.ray_train import run_on_ray
from lafs_ray.errors import UserError
from lafs_ray.training.prepare import RunInputs
from lafs_ray.tuning.preflight import one_line
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.trial import Copy, Task, run_trial, train_here

_POLL_S = 1.0
_POINTER = "pointer.json"


def trainable(
    make_task: Callable[[int, Settings], Task], numbers: Sequence[int] | None
) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for a trial.

    Args:
        make_task: what there is to do.
        numbers: of a population's members; None where the configuration says the number.
    """

    def trial(config: dict[str, Any]) -> None:
        number = number_of(tune.get_context().get_trial_id(), config, numbers)
        task = make_task(number, config["settings"])
        copied = tune.get_checkpoint()
        try:
            run_trial(
                task,
                _Teller(number, task.folder.uri, keeps_pointer=numbers is not None),
                train_anywhere,
                None if copied is None else _copy(copied, task.folder.uri),
            )
        except UserError as error:
            # Another try would meet the same mistake, so Tune is not told of a failure.
            task.folder.write_outcome("failed", one_line(error))

    return trial


def number_of(trial_id: str, config: dict[str, Any], numbers: Sequence[int] | None) -> int:
    """A trial's number. A copied configuration is that of another trial, its id is its own."""
    if numbers is None:
        return int(config["number"])
    return numbers[int(trial_id.rpartition("_")[2])]


@dataclass(frozen=True)
class _Teller:
    """Hands reports to Tune.

    Args:
        number: of the trial.
        folder: of the trial.
        keeps_pointer: whether each report says where its checkpoint lies, for those who copy it.
    """

    number: int
    folder: str
    keeps_pointer: bool

    def __call__(self, report: Report, replayed: bool) -> None:
        metrics = {**asdict(report), "number": self.number, "replayed": replayed}
        if not self.keeps_pointer:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"folder": self.folder, "report": report.report}
            (Path(folder) / _POINTER).write_text(json.dumps(pointer))
            tune.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _copy(checkpoint: Checkpoint, own: str) -> Copy | None:
    """Whose checkpoint it is; None where it is the trial's own, which it finds by itself."""
    with checkpoint.as_directory() as folder:
        pointer = json.loads((Path(folder) / _POINTER).read_text())
    return None if pointer["folder"] == own else Copy(pointer["folder"], pointer["report"])


def train_anywhere(inputs: RunInputs, saved: Callable[[int], None]) -> None:
    """Train a job where its configuration says: in this process, or on workers of its own."""
    if inputs.config.compute.workers == 0:
        train_here(inputs, saved)
    else:
        train_on_workers(inputs, saved)


def train_on_workers(inputs: RunInputs, saved: Callable[[int], None]) -> None:
    """Train on Ray Train's workers; their checkpoints are told here as they appear.

    The training does not wait for whoever is told. If he raises, the thread stays behind, and its
    workers end with this process, which Tune ends then.

    Raises:
        UserError: a mistake that the workers met.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            run_on_ray(inputs)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    folder, told = inputs.folder(), set(inputs.folder().steps())
    thread.start()
    while True:
        thread.join(_POLL_S)
        is_over = not thread.is_alive()
        for step in folder.steps():
            if step not in told:
                told.add(step)
                saved(step)
        if is_over:
            break
    if errors:
        raise errors[0]
