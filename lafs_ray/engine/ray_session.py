"""Start a local Ray or join the running cluster, with quiet logs and Ray Data's settings."""

from __future__ import annotations

import math
import os

import ray
import ray.train
from ray.data import DataContext

from lafs_ray.errors import ConfigError

_NO_PROGRESS_TIMEOUT_S = 300

# Set before Ray starts, so its workers inherit them; values set by the user stay.
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's default is the number of cores, with a warning for every few processes beyond it.
    "RAY_worker_maximum_startup_concurrency": "64",
}


def join_cluster(cpus: float, cpu_arithmetic: str, gpus: float = 0, gpu_arithmetic: str = "") -> None:
    """Join the cluster of this job, or start one on this machine.

    Args:
        cpus: to be reserved.
        cpu_arithmetic: their sum in terms of configuration keys, for the message.
        gpus: to be reserved.
        gpu_arithmetic: likewise.

    Raises:
        ConfigError: the cluster has fewer.
    """
    start_or_join(cpus)
    resources = ray.cluster_resources()
    needs = (("CPU", cpus, cpu_arithmetic), ("GPU", gpus, gpu_arithmetic))
    for name, needed, arithmetic in needs:
        if (have := resources.get(name, 0.0)) < needed:
            raise ConfigError(
                f"the Ray cluster's {name}s",
                found=f"{have:g}",
                expected=f"at least {needed:g}: {arithmetic}",
                fix="reduce these settings, or add nodes to the cluster",
            )


def start_or_join(cpus: float) -> None:
    """Join the cluster of this job, or start one on this machine with at least these CPUs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        on_cluster = "RAY_ADDRESS" in os.environ
        # CPUs are logical: on a laptop, workers that mostly wait for each other may share cores.
        local = {} if on_cluster else {"num_cpus": max(os.cpu_count() or 1, math.ceil(cpus))}
        ray.init(address=None if on_cluster else "local", logging_level="error", log_to_driver=False, **local)


def configure_context(context: DataContext, cpus: float) -> None:
    """Set what order, memory and terminal of a Ray Data job depend on.

    Args:
        context: of the process that makes the dataset.
        cpus: limit for its tasks and actors.
    """
    context.execution_options.preserve_order = True
    # None keeps one block for each task; a size would split or merge shuffle blocks.
    context.target_max_block_size = None
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    # Else Ray wraps a task's exception so that `find_user_error` cannot find its cause.
    context.raise_original_map_exception = True
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(cpu=cpus)
