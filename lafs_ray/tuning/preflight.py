"""All that is looked at before the first trial starts; all mistakes in one message."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass

from lafs_ray.config.loader import all_mistakes
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.face_set import FaceSet
from lafs_ray.errors import ConfigError, UserError
from lafs_ray.training.prepare import check_run
from lafs_ray.training.run_length import build_sampler, run_length
from lafs_ray.training.runner import training_device
from lafs_ray.tuning.leakage import overlaps
from lafs_ray.tuning.objective import check_eval_sets
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.trial_config import Sweep
from lafs_ray.tuning.validation import edge_settings, known_settings, mistakes_in

# Settings of these decide which files and networks are read; other ones only how long a run is.
_LANDMARKS = ("landmarks.weights", "landmarks.source", "landmarks.cache")
_READ = ("data.", "start.", "model.", "regularizer.strength", *_LANDMARKS)
_MAX_READ = 20


@dataclass(frozen=True)
class Checked:
    """A sweep whose mistakes have been looked for.

    Args:
        sweep: the sweep.
        total_steps: of a run with the base's settings.
        fingerprints: of the sets that trials train on, by section.
    """

    sweep: Sweep
    total_steps: int
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class _Opened:
    """What is kept of a job that was checked; its weights may be large."""

    faces: FaceSet
    total_steps: int


def check_sweep(sweep: Sweep) -> Checked:
    """Look for every mistake that can be found before a trial has run.

    Raises:
        ConfigError: naming all of them.
    """
    source, expected = f"sweep {sweep.config.name}", "a sweep that can run to its end"
    mistakes = mistakes_in(sweep)
    if sweep.config.searcher.kind == "optuna" and importlib.util.find_spec("optuna") is None:
        mistakes.append("searcher.kind: optuna is not installed; pip install 'lafs-ray[sweep]'")
    if mistakes:
        raise all_mistakes(source, mistakes, expected)
    found: dict[str, _Opened] = {}
    mistakes = [*_data_mistakes(sweep, found)]
    if mistakes:
        raise all_mistakes(source, mistakes, expected)
    fingerprints = {name: opened.faces.fingerprint for name, opened in found.items()}
    return Checked(sweep, found["trials"].total_steps, fingerprints)


def _open(config: TrainConfig) -> _Opened:
    inputs = check_run(config)
    return _Opened(inputs.faces, inputs.length.total_steps)


def _data_mistakes(sweep: Sweep, found: dict[str, _Opened]) -> Iterator[str]:
    config = sweep.config
    for section in ("objective", "confirm"):
        judges = getattr(config, section)
        metric = judges.metric or config.objective.metric
        try:
            if metric != "loss":
                check_eval_sets(judges, metric, config.objective.far)
        except UserError as error:
            yield f"{section}: {one_line(error)}"
    try:
        if sweep.default.compute.workers == 0:
            training_device(sweep.default)
        job = sweep.job({}, name="check", folder=config.storage, seed=0)
        found["trials"] = _open(job)
    except UserError as error:
        yield f"a run with the base's settings: {one_line(error)}"
    else:
        yield from _trial_mistakes(sweep, found["trials"].faces)
    if sweep.default_finetune is not None:
        try:
            # The transformer does not exist yet; the rest does.
            start = sweep.default_finetune.start.model_copy(update={"transformer": None})
            regularizer = sweep.default_finetune.regularizer.model_copy(update={"strength": 0.0})
            parts = {"start": start, "regularizer": regularizer}
            found["finetune"] = _open(sweep.default_finetune.model_copy(update=parts))
        except UserError as error:
            yield f"finetune: {one_line(error)}"
    try:
        yield from overlaps(sweep)
    except UserError as error:
        yield one_line(error)


def _trial_mistakes(sweep: Sweep, default: FaceSet) -> Iterator[str]:
    """What is wrong with single trials: their files, their length, the number of their reports."""
    named: set[str] = set()
    read: dict[str, FaceSet] = {}
    for settings in [{}, *edge_settings(sweep.config.space), *known_settings(sweep.config)]:
        for line in _mistakes_of_trial(sweep, settings, default, read):
            if line not in named:
                yield f"{line} (with {settings})" if settings else line
            named.add(line)


def _mistakes_of_trial(
    sweep: Sweep, settings: Settings, default: FaceSet, read: dict[str, FaceSet]
) -> Iterator[str]:
    config = sweep.job(settings, name="check", folder=sweep.config.storage, seed=0)
    decisive = {key: value for key, value in settings.items() if key.startswith(_READ)}
    kind = json.dumps(decisive, sort_keys=True)
    try:
        if decisive and kind not in read and len(read) < _MAX_READ:
            read[kind] = _open(config).faces
        faces = read.get(kind, default)
        length = run_length(config, build_sampler(config, faces))
    except UserError as error:
        yield one_line(error)
        return
    total, reports = length.total_steps, sweep.config.objective.reports
    made = -(-total // -(-total // reports))
    if made != reports:
        distance = -(-total // reports)
        yield (
            f"objective.reports: {reports} of a run of {total} steps, but every {distance} steps "
            f"make {made}; write {made}, or change duration"
        )


def one_line(error: UserError) -> str:
    """A mistake in a line of a list."""
    found = " ".join(error.found.split())
    return f"{error.subject}: found {found}; expected {error.expected}; {error.fix}"


def refuse_no_trials(message: str) -> ConfigError:
    """The error of a sweep none of whose trials has come to anything."""
    return ConfigError(
        "the sweep's trials",
        found=message,
        expected="at least one that is judged",
        fix="mend what is named, and start the sweep again: failed trials are tried again",
    )
