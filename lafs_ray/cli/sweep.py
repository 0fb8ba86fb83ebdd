"""The command line of a sweep: read, checked, described, and run."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from lafs_ray.cli.main import parse
from lafs_ray.config.loader import load
from lafs_ray.data.io import filesystem
from lafs_ray.tuning.config import EvalSets, SweepConfig
from lafs_ray.tuning.driver import Driver
from lafs_ray.tuning.outputs import say
from lafs_ray.tuning.preflight import Checked, check_sweep
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial_config import read_sweep


def start_sweep(description: str, arguments: Sequence[str]) -> None:
    """Do what the command line says.

    Raises:
        UserError: a mistake in the arguments, the sweep, its job, its data or its folder.
    """
    options = parse(description, arguments, "configs/sweep/", "describe the trials, and end")
    config = load(SweepConfig, options.config, options.overrides)
    checked = check_sweep(read_sweep(_with_absolute_paths(config)))
    describe(checked)
    if not options.dry_run:
        Driver(checked).run()


def _with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """Trials run in folders of their own."""
    judges = {name: _absolute(getattr(config, name)) for name in ("objective", "confirm")}
    return config.model_copy(update={**judges, "storage": filesystem.absolute(config.storage)})


def _absolute(judges: EvalSets) -> EvalSets:
    paths = {name: getattr(judges, name) for name in ("pairs", "identities")}
    absolute = {name: path and filesystem.absolute(path) for name, path in paths.items()}
    return judges.model_copy(update=absolute)


def describe(checked: Checked) -> None:
    """Print what the sweep is and what its trials are, as far as they are known."""
    config, folder = checked.sweep.config, SweepDir(checked.sweep)
    shown = config.model_dump(mode="json", exclude_defaults=True, exclude={"space"})
    say(yaml.safe_dump(shown, sort_keys=False).rstrip())
    for key, dimension in config.space.items():
        values = dimension.edges()
        when = "".join(f", when {name} is one of {list(v)}" for name, v in dimension.when.items())
        say(f"  {key}: {dimension.kind} {values}{when}")
    say(
        f"{config.name}: {config.budget.trials} trials of {checked.total_steps} steps, "
        f"{config.objective.reports} reports, {len(config.objective.seeds)} seeds; "
        f"results in {folder.uri}"
    )
