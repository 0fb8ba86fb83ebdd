"""How many trials run at once without waiting forever for each other's resources.

Tune places a trial's process, but does not know of the workers and preprocessors that this starts. So the number of
concurrent trials is computed here from what a whole trial takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lafs_ray.config.train import TrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.trial_config import Sweep


@dataclass(frozen=True)
class Resources:
    """Logical CPUs, and GPUs or a share of one."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs"

    def count_in(self, available: Mapping[str, float]) -> int:
        """Return how many fit into the CPUs and GPUs available, by Ray's names."""
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        # Three thirds of a GPU are a whole one.
        counts = [available.get(name, 0.0) / need + 1e-6 for name, need in needed.items() if need]
        return int(min(counts))


@dataclass(frozen=True)
class TrialResources:
    """Resources of one trial.

    Args:
        process: of its own process, which evaluates and, with compute.workers=0, trains.
        workers: of the training workers and preprocessors that it starts.
        arithmetic: how they add up.
    """

    process: Resources
    workers: Resources
    arithmetic: str

    @property
    def total(self) -> Resources:
        """Sum of both."""
        return self.process + self.workers


def trial_resources(sweep: Sweep) -> TrialResources:
    """Return the resources of one trial of a sweep."""
    config, finetune, objective = sweep.default, sweep.default_finetune, sweep.config.objective
    configs = {"compute": config, **({"finetune.compute": finetune} if finetune else {})}
    # In one process training and evaluation alternate, so the larger one counts.
    evaluation = Resources(objective.cpus, objective.gpus if config.compute.workers else 0.0)
    phases = [evaluation, *(_worker(c) for c in configs.values() if c.compute.workers == 0)]
    process = Resources(max(one.cpus for one in phases), max(one.gpus for one in phases))
    workers, parts = Resources(), [f"{process} for its process"]
    for name, one in configs.items():
        if one.compute.workers > 0:
            # The sweep replaces online evaluation.
            plain = one.model_copy(update={"online_eval": type(one.online_eval)()})
            own = Resources(plain.needed_cpus, one.compute.workers * _worker(one).gpus)
            workers += own
            parts.append(f"{own} for {name}.workers {one.compute.workers} and their ingest")
    return TrialResources(process, workers, " + ".join(parts))


def _worker(config: TrainConfig) -> Resources:
    compute = config.compute
    gpus = compute.gpus_per_worker if compute.device == "cuda" else 0.0
    return Resources(compute.cpus_per_worker, gpus)


def max_concurrent(sweep: Sweep, trial: TrialResources, nodes: Sequence[Mapping[str, Any]], members: int = 1) -> int:
    """Return how many trials fit at once, by cluster, nodes and budget.

    Args:
        sweep: whose budget may be less than the cluster.
        trial: resources of one; its process is placed on one node, as is each worker.
        nodes: of the cluster, from `ray.nodes()`.
        members: trials that must run at once. In a population, one that waits until others have ended has no member to
            copy, and Tune would not warn.

    Raises:
        ConfigError: not that many fit.
    """
    alive = [node["Resources"] for node in nodes if node.get("Alive")]
    budget, usable = sweep.config.budget, {}
    for name, needed in (("CPU", trial.total.cpus), ("GPU", trial.total.gpus)):
        key, have = f"{name.lower()}s", sum(node.get(name, 0.0) for node in alive)
        limit = getattr(budget, key)
        usable[name] = have if limit is None else min(have, limit)
        if usable[name] + 1e-6 < needed:
            limited = "" if limit is None else f", of which budget.{key} allows {limit:g}"
            raise ConfigError(
                f"{name}s for one trial",
                found=f"{have:g} in the cluster{limited}",
                expected=f"at least {needed:g}: {trial.arithmetic}",
                fix="reduce compute.* and ingest.* in settings, raise the budget, or add nodes",
            )
    configs = [one for one in (sweep.default, sweep.default_finetune) if one is not None]
    parts = [("a trial's process", trial.process)]
    parts += [("a training worker", _worker(c)) for c in configs if c.compute.workers > 0]
    for name, part in parts:
        if not any(part.count_in(node) for node in alive):
            sizes = [Resources(node.get("CPU", 0), node.get("GPU", 0)) for node in alive]
            raise ConfigError(
                f"a node for {name}",
                found=f"nodes of {'; '.join(map(str, sizes))}",
                expected=f"one with {part}",
                fix="reduce compute.cpus_per_worker or compute.gpus_per_worker in settings",
            )
    most = min(budget.max_concurrent or budget.trials, budget.trials)
    processes = sum(trial.process.count_in(node) for node in alive)
    fitting = min(most, trial.total.count_in(usable), processes)
    if fitting < members:
        raise ConfigError(
            "resources for a population",
            found=f"{fitting} concurrent trials by cluster, nodes and budget",
            expected=f"all {members} members at once, each {trial.arithmetic}",
            fix="reduce budget.trials or the resources of a trial, raise budget.cpus or "
            "budget.gpus where they are set, or add nodes",
        )
    return fitting
