"""`lafs status`: the state of a run or of a sweep, from its directory."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

from lafs_ray.messages import show
from lafs_ray.report.sweep import is_sweep, read_sweep_folder
from lafs_ray.training.monitoring.status import read_status
from lafs_ray.tuning.results import table


def print_status(options: Namespace) -> None:
    """Print the status of a run or sweep, which may be running.

    Raises:
        UserError: the folder is of neither, or a file in it is damaged.
    """
    if is_sweep(options.run):
        print_trials(options.run, as_json=options.json)
        return
    status = read_status(options.run)
    show(status.as_json() if options.json else status)


def print_trials(sweep: str, *, as_json: bool) -> None:
    """Print the trials of a sweep, the best first."""
    record = read_sweep_folder(sweep)
    if as_json:
        show(json.dumps([asdict(trial) for trial in record.trials], indent=2))
        return
    config, objective = record.config, record.config.objective
    state = "confirmed" if record.confirmation is not None else "not confirmed"
    show(f"{sweep} (sweep): {len(record.trials)} trials started, {state}")
    show("\n".join(table(record.trials, config.space, objective.sign, objective.last_report)))
