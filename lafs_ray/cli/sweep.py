"""`lafs sweep`: read, validate, describe and run a sweep."""

from __future__ import annotations

import logging
from argparse import Namespace

import yaml

from lafs_ray.config.loader import load
from lafs_ray.config.presets import config_file
from lafs_ray.engine.console import LineHandler, log_to
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.driver import Driver
from lafs_ray.tuning.preflight import check_sweep
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial_config import Sweep, read_sweep

logger = logging.getLogger(__name__)


def start_sweep(options: Namespace) -> None:
    """Run the sweep that the command line describes.

    Raises:
        UserError: an error in the arguments, the configuration, the data or the sweep's directory.
    """
    sweep = read_sweep(load(SweepConfig, config_file("sweep", options.config), options.overrides))
    fingerprints = check_sweep(sweep)
    with log_to(LineHandler()):
        describe(sweep)
        if not options.dry_run:
            # Imported here: a dry run need not wait for Ray's import.
            from lafs_ray.tuning.tuner import run_batch

            Driver(sweep, fingerprints, run_batch).run()


def describe(sweep: Sweep) -> None:
    """Log the sweep's settings, its space and the number of trials."""
    config = sweep.config
    shown = config.model_dump(mode="json", exclude_defaults=True, exclude={"space"})
    logger.info(yaml.safe_dump(shown, sort_keys=False).rstrip())
    for key, dimension in config.space.items():
        when = "".join(f", when {name} in {list(v)}" for name, v in dimension.when.items())
        logger.info(f"  {key}: {dimension.kind} {dimension.edges()}{when}")
    logger.info(
        f"{config.name}: trials {config.budget.trials}, "
        f"reports {config.objective.reports}, seeds {len(config.objective.seeds)}; "
        f"results in {SweepDir(sweep).uri}"
    )
