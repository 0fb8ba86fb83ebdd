"""Start a local Ray or join the running cluster, with quiet logs and Ray Data's settings."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ray
import ray.train
from ray.data import DataContext

from lafs_ray.config.train import ON_CPU
from lafs_ray.engine.ray_address import address_error, check_address
from lafs_ray.engine.ray_guard import LOCAL, guard
from lafs_ray.errors import ConfigError
from lafs_ray.interrupt import delayed

logger = logging.getLogger(__name__)

_NO_PROGRESS_TIMEOUT_S = 300

# Set before Ray starts, so its workers inherit them; values set by the user stay. None of Ray Train's, whose settings
# become a runtime environment, see `train_controller`.
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's default is the number of cores, with a warning for every few processes beyond it.
    "RAY_worker_maximum_startup_concurrency": "64",
}

# For a Ray of this machine alone. The first one makes 127.0.0.1 the node's address, and to that address Ray binds all
# its servers; else they listen on all interfaces. gloo does so by the second one.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}

# Set to 1, a Ray of this machine has its dashboard, a dozen processes more; and Prometheus finds its ports.
DASHBOARD = "LAFS_DASHBOARD"


def is_local() -> bool:
    """Return whether this Ray was started by `start_or_join`: all of its processes have the variables set there."""
    # The address, in case that the process has left that Ray and joined another one.
    return LOCAL in os.environ and ray.util.get_node_ip_address() == "127.0.0.1"


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
                fix=f"run where there are GPUs, or set {ON_CPU}"
                if name == "GPU" and have == 0 and "compute." in arithmetic
                else "reduce these settings, or add nodes to the cluster",
            )


def start_or_join(cpus: float, *, needs_dashboard: bool = False) -> None:
    """Join the cluster of this job, or start one on this machine.

    Args:
        cpus: that one on this machine has at least.
        needs_dashboard: whether it has a dashboard in any case; Ray answers queries about actors through it.

    Raises:
        ConfigError: the cluster of RAY_ADDRESS does not answer, or Ray cannot start here.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "").strip()
        if not address:
            os.environ.pop("RAY_ADDRESS", None)
        on_cluster = address not in ("", "local")
        if on_cluster:
            check_address(address)
        # CPUs are logical: on a laptop, workers that mostly wait for each other may share cores.
        local: dict[str, Any] = {}
        if not on_cluster:
            has_dashboard = needs_dashboard or os.environ.get(DASHBOARD, "") not in ("", "0")
            local = {"num_cpus": max(os.cpu_count() or 1, math.ceil(cpus)), "include_dashboard": has_dashboard}
        logger.info("joining the Ray cluster at %s" if on_cluster else "starting Ray on this machine%s", address)
        if on_cluster:
            os.environ.pop(LOCAL, None)
        else:
            guard()
            _bind_to_loopback()
        try:
            with delayed("interrupted: waiting for Ray to start, then ending; once more ends at once"):
                context = ray.init(
                    address=None if on_cluster else "local", logging_level="error", log_to_driver=False, **local
                )
            url = getattr(context, "dashboard_url", None)
            logger.info(
                "Ray is there (%s)", f"dashboard http://{url}" if url else f"no dashboard; {DASHBOARD}=1 starts it"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _start_error(address, error) from error


def _bind_to_loopback() -> None:
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    # Ray has read the variable when it was imported.
    constants: Any = getattr(ray._private, "ray_constants", None)
    if os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0" and hasattr(constants, "ENABLE_RAY_CLUSTER"):
        constants.ENABLE_RAY_CLUSTER = False


def _start_error(address: str, error: Exception) -> ConfigError:
    """Return the message for an error of `ray.init`."""
    reason = " ".join(str(error).split())
    if "AF_UNIX path" in reason:
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        return ConfigError(
            name,
            found=f"{os.environ.get(name, '')}, too long for the paths of Ray's sockets",
            expected="a folder whose path has at most 35 characters",
            fix="set RAY_TMPDIR=/tmp, or another short path on a local disk",
        )
    if address:
        return address_error(f"{address}: {reason}")
    return ConfigError(
        "Ray on this machine",
        found=reason,
        expected="a Ray that starts",
        fix="end the Ray processes of earlier jobs (`ray stop`), and check memory and disk space for /tmp/ray",
    )


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
