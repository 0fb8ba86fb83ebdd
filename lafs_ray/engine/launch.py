"""Start a training job: in this process for debugging, or on Ray."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import yaml

from lafs_ray.config.base import SectionT, load
from lafs_ray.config.sections import Job
from lafs_ray.training.session import open_job, run_local, training_device


def job_config(kind: type[SectionT], description: str, arguments: Sequence[str]) -> SectionT:
    """The configuration that a job's command line names.

    Raises:
        ConfigError: the file, a key or a value is wrong.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a YAML file, such as those under configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that differ from the file"
    )
    options = parser.parse_args(arguments)
    return load(kind, options.config, options.overrides)


def launch(config: Job) -> None:
    """Check a training job's inputs, then run it to its end.

    Raises:
        UserError: a mistake in the configuration, the data or the run's folder.
    """
    if config.compute.workers == 0:
        training_device(config)
    inputs = open_job(config)
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")  # noqa: T201
    length, faces = inputs.length, inputs.faces
    print(  # noqa: T201
        f"{config.run.name}: {faces.num_images} faces, {length.steps_per_epoch} steps an epoch, "
        f"{length.total_steps} steps; results in {inputs.folder().uri}",
        flush=True,
    )
    if config.compute.workers == 0:
        run_local(inputs)
    else:
        # Debug mode has to start, and run, where Ray is not installed.
        from lafs_ray.engine.cluster import run_on_ray

        run_on_ray(inputs)
