"""Ray Train's controller, with as few processes as a run needs.

Ray Train hands its settings on as a runtime environment. All that a run starts then has one: each process imports Ray
twice, and none of those that Ray keeps ready is used. Here the settings are given to the controller alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller import TrainController

_HEALTH_CHECK_INTERVAL_S = "0.5"


class RunController(TrainController):  # type: ignore[misc] # Ray ships no types
    """Ray Train's controller of one run, an actor.

    Args:
        watches_nodes: whether an actor of Ray Train's warns of nodes about to leave.
        arguments: of Ray Train's.
    """

    def __init__(self, *, watches_nodes: bool, **arguments: Any) -> None:
        settings = {HEALTH_CHECK_INTERVAL_S_ENV_VAR: _HEALTH_CHECK_INTERVAL_S}
        if not watches_nodes:
            settings[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"
        ours = {name: value for name, value in settings.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            super().__init__(**arguments)
        finally:
            # What is set when the workers start, they get as a runtime environment.
            for name in ours:
                del os.environ[name]


def run_controller(on_start: Callable[[Any], None], *, is_local: bool, **arguments: Any) -> Any:
    """Run the controller in an actor on the driver's node, as `TorchTrainer` does.

    Args:
        on_start: gets the actor's handle.
        is_local: whether all processes of this Ray have the environment of this one.
        arguments: of Ray Train's controller.

    Returns:
        Its `Result`.
    """
    controller = ray.remote(
        num_cpus=0,
        label_selector={ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()},
        runtime_env={} if is_local else {"env_vars": get_env_vars_to_propagate()},
    )(RunController).remote(watches_nodes=not is_local, **arguments)
    on_start(controller)
    ray.get(controller.run.remote())
    return ray.get(controller.get_result.remote())


def needed(callbacks: list[RayTrainCallback], *, owns_ray: bool) -> list[RayTrainCallback]:
    """Return the callbacks of Ray Train that a run needs; each of the others starts an actor.

    Args:
        callbacks: Ray Train's own.
        owns_ray: whether this Ray ends with this process, and with it the workers' resources. Else Ray Train returns
            them if the controller is killed, as that of a trial which is stopped early.
    """
    # Runs stream their input themselves.
    unneeded = (DatasetsCallback, PlacementGroupCleanerCallback) if owns_ray else (DatasetsCallback,)
    return [one for one in callbacks if not isinstance(one, unneeded)]
