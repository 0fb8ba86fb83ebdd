"""Fail fast: everything that can be validated before the first trial, all errors in one message."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lafs_ray.config.loader import config_error
from lafs_ray.data.mixed_faces import TrainingFaces
from lafs_ray.errors import ConfigError, UserError
from lafs_ray.training.prepare import check_run
from lafs_ray.training.run_length import build_sampler, run_length
from lafs_ray.training.runner import training_device
from lafs_ray.tuning.leakage import find_leakage
from lafs_ray.tuning.objective import check_eval_sets
from lafs_ray.tuning.trial import report_interval
from lafs_ray.tuning.trial_config import Sweep
from lafs_ray.tuning.validation import edge_settings, find_errors, known_settings

# Keys that decide which files and networks a run reads; the others only change its length.
_INPUTS = (
    *("data.", "start.", "model.", "regularizer.strength"),
    *("landmarks.weights", "landmarks.source", "landmarks.cache", "landmarks.template"),
    *("distillation.teacher", "neighbors.pairs"),
)
# Different inputs that are opened, at most.
_MAX_OPENED = 20


def check_sweep(sweep: Sweep) -> dict[str, str]:
    """Validate a sweep's settings, then its files and all trials that are known.

    Returns:
        The fingerprints of the training sets, by section.

    Raises:
        ConfigError: naming all errors.
    """
    opened: dict[str, TrainingFaces] = {}
    errors = find_errors(sweep) or [*_data_errors(sweep, opened)]
    if errors:
        raise config_error(f"sweep {sweep.config.name}", errors, "a sweep that can run to its end")
    return {name: faces.fingerprint for name, faces in opened.items()}


def _data_errors(sweep: Sweep, opened: dict[str, TrainingFaces]) -> Iterator[str]:
    config = sweep.config
    objectives = {"objective": config.objective, "confirm": config.confirm_objective}
    for section, objective in objectives.items():
        try:
            if objective.metric != "loss":
                check_eval_sets(objective)
        except UserError as error:
            yield f"{section}: {as_line(error)}"
    try:
        if sweep.default.compute.workers == 0:
            training_device(sweep.default)
        run = sweep.run_config({}, name="check", storage=config.storage, seed=0)
        opened["trials"] = check_run(run).faces
    except UserError as error:
        yield f"a run with the base's settings: {as_line(error)}"
    else:
        yield from _trial_errors(sweep, opened["trials"])
    if sweep.default_finetune is not None:
        try:
            # The transformer does not exist yet; the rest does.
            start = sweep.default_finetune.start.model_copy(update={"transformer": None})
            regularizer = sweep.default_finetune.regularizer.model_copy(update={"strength": 0.0})
            parts = {"start": start, "regularizer": regularizer}
            opened["finetune"] = check_run(sweep.default_finetune.model_copy(update=parts)).faces
        except UserError as error:
            yield f"finetune: {as_line(error)}"
    try:
        yield from find_leakage(sweep)
    except UserError as error:
        yield as_line(error)


def _trial_errors(sweep: Sweep, default: TrainingFaces) -> Iterator[str]:
    """Yield errors of single trials, each once: files, length, number of reports."""
    reported: set[str] = set()
    opened: dict[str, TrainingFaces] = {}
    for settings in [{}, *edge_settings(sweep.config.space), *known_settings(sweep.config)]:
        config = sweep.run_config(settings, name="check", storage=sweep.config.storage, seed=0)
        decisive = {key: value for key, value in settings.items() if key.startswith(_INPUTS)}
        inputs = json.dumps(decisive, sort_keys=True)
        try:
            if decisive and inputs not in opened and len(opened) < _MAX_OPENED:
                opened[inputs] = check_run(config).faces
            sampler = build_sampler(config, opened.get(inputs, default))
            line = _reports_error(run_length(config, sampler).total_steps, sweep)
        except UserError as error:
            line = as_line(error)
        if line and line not in reported:
            reported.add(line)
            yield f"{line} (with {settings})" if settings else line


def _reports_error(total_steps: int, sweep: Sweep) -> str:
    reports = sweep.config.objective.reports
    interval = report_interval(total_steps, reports)
    possible = -(-total_steps // interval)
    if possible == reports:
        return ""
    return (
        f"objective.reports: {reports} of a run of {total_steps} steps, but one every {interval} "
        f"steps makes {possible}; write {possible}, or change duration"
    )


def as_line(error: UserError) -> str:
    """Return an error as one line of a list."""
    found = " ".join(error.found.split())
    return f"{error.subject}: found {found}; expected {error.expected}; {error.fix}"


def no_results_error(message: str) -> ConfigError:
    """Return the error of a sweep without any result."""
    return ConfigError(
        "the sweep's trials",
        found=message,
        expected="at least one trial with a report",
        fix="fix the error above and start the sweep again: failed trials are retried",
    )
