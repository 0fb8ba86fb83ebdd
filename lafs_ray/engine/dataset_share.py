"""What the dataset of one rank may use: the CPUs that the run has checked for it, however many ranks there are.

Ray Data's coordinator divides what a node has left by the number of datasets, rounding down: 64 ranks on 8 nodes of 48
CPUs would get no CPU each, and run one task at a time. For CPUs a run needs no coordinator: before it starts, `connect`
compares those of the nodes with the sum of what trainers, preprocessing and reading reserve, and Ray places each actor
and task where its CPUs are free. Memory, in bytes, is the coordinator's to divide, also among other jobs.

Imports no torch: Ray Data's settings, which name this module, are read in read tasks as well.
"""

from __future__ import annotations

import time
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import ExecutionResources


class OwnCpus(ExecutionCallback):  # type: ignore[misc] # Ray ships no types
    """Replaces the CPUs of the coordinator's share by those of the limit, and has patience with trainers."""

    def before_execution_starts(self, executor: Any) -> None:
        """Give the execution the CPUs of its limit."""
        cpus = executor._data_context.execution_options.resource_limits.cpu
        autoscaler = executor._cluster_autoscaler
        share_of = autoscaler.get_total_resources

        def with_own_cpus() -> ExecutionResources:
            return share_of().copy(cpu=cpus)

        autoscaler.get_total_resources = with_own_cpus

    def on_execution_step(self, executor: Any) -> None:
        """Keep an execution alive whose blocks wait to be taken: its turn comes later, or steps are slow.

        The timeout of `configure_context` is for one that makes none.
        """
        if not executor._consumer_idling():
            executor._no_progress_guard._last_progress_time = time.monotonic()


def reserve_cpus(context: DataContext) -> None:
    """Let datasets have the CPUs of their limit, see `configure_context`.

    Args:
        context: of the process that makes them.
    """
    context.custom_execution_callback_classes = [OwnCpus]
