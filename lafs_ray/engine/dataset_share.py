"""What the dataset of one rank may use: the CPUs that the run has checked for it, however many ranks there are.

Ray Data's coordinator divides what a node has left by the number of datasets, rounding down: 64 ranks on 8 nodes of 48
CPUs would get no CPU each, and run one task at a time. A run needs no coordinator: before it starts, `connect` compares
the CPUs of the nodes with the sum of what trainers, preprocessing and reading reserve, and Ray places each actor and
task where its CPUs are free.

Imports no torch: Ray Data's settings, which name this module, are read in read tasks as well.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import ExecutionResources


class Reserved(ClusterAutoscaler):  # type: ignore[misc] # Ray ships no types
    """Resources of a dataset that do not depend on other datasets; nodes are requested before the run.

    Args:
        total: the resources.
    """

    def __init__(self, total: ExecutionResources) -> None:
        self._total = total

    def try_trigger_scaling(self) -> None:
        """Request nothing."""

    def on_executor_shutdown(self) -> None:
        """Withdraw nothing."""

    def get_total_resources(self) -> ExecutionResources:
        """Return the resources."""
        return self._total


class OwnShare(ExecutionCallback):  # type: ignore[misc] # Ray ships no types
    """Replaces the share of Ray Data's coordinator, before an execution starts, and has patience with trainers.

    Args:
        datasets: that run at once, of which each has an equal part of the nodes' memory.
    """

    def __init__(self, datasets: int) -> None:
        self._datasets = datasets

    def on_execution_step(self, executor: Any) -> None:
        """Keep an execution alive whose blocks wait to be taken: its turn comes later, or steps are slow.

        The timeout of `configure_context` is for one that makes none.
        """
        if not executor._consumer_idling():
            executor._no_progress_guard._last_progress_time = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """Give the execution the CPUs of its limit."""
        options = executor._data_context.execution_options
        # It has registered with the coordinator when it was made.
        executor._cluster_autoscaler.on_executor_shutdown()
        executor._cluster_autoscaler = Reserved(
            share_of(options.resource_limits.cpu, options.label_selector or {}, self._datasets)
        )


def reserve(context: DataContext, datasets: int) -> None:
    """Let a dataset have the CPUs of its limit, see `configure_context`.

    Args:
        context: of the process that makes the dataset.
        datasets: that run at once.
    """
    context.custom_execution_callback_classes = [partial(OwnShare, datasets)]


def share_of(cpus: float, labels: Mapping[str, str], datasets: int) -> ExecutionResources:
    """Return the resources of one of several datasets: its CPUs, and an equal part of the nodes' memory.

    Args:
        cpus: of the dataset.
        labels: of the nodes that it uses.
        datasets: that run at once.
    """
    # A head without CPUs has no memory for others, as in Ray Data's own sums.
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and labels.items() <= node["Labels"].items()
    ]
    memory = {
        name: sum(node.get(name, 0.0) for node in nodes) // datasets for name in ("object_store_memory", "memory")
    }
    return ExecutionResources(cpu=cpus, gpu=0.0, **memory)
