"""How many trials run at once, so that none can wait for ever on what others hold.

A trial's process is placed by Tune; the workers and croppers that it starts are not in Tune's
books. So the number of trials at a time is computed here from what a whole trial takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lafs_ray.config.train import TrainConfig
from lafs_ray.engine.resources import needed_cpus
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.trial_config import Sweep


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs.

    Args:
        cpus: logical CPUs.
        gpus: GPUs, or a share of one.
    """

    cpus: float
    gpus: float

    def __add__(self, other: Room) -> Room:
        return Room(self.cpus + other.cpus, self.gpus + other.gpus)

    def __mul__(self, times: int) -> Room:
        return Room(self.cpus * times, self.gpus * times)


@dataclass(frozen=True)
class TrialRoom:
    """What one trial takes.

    Args:
        process: of its own process, which judges and, with compute.workers=0, trains.
        workers: of the training workers and croppers that it starts.
        arithmetic: how they came about.
    """

    process: Room
    workers: Room
    arithmetic: str

    @property
    def total(self) -> Room:
        """Of all its parts."""
        return self.process + self.workers


def trial_room(sweep: Sweep) -> TrialRoom:
    """What one trial of a sweep takes."""
    job, finetune, objective = sweep.default, sweep.default_finetune, sweep.config.objective
    jobs = [("compute", job), *([("finetune.compute", finetune)] if finetune else [])]
    here = [(name, one) for name, one in jobs if one.compute.workers == 0]
    there = [(name, one) for name, one in jobs if one.compute.workers > 0]
    # In one process training and judging take turns.
    judging = Room(objective.cpus, objective.gpus if job.compute.workers else 0.0)
    turns = [judging, *(_in_process(one) for _, one in here)]
    process = Room(max(one.cpus for one in turns), max(one.gpus for one in turns))
    workers = sum((_of_workers(one) for _, one in there), Room(0.0, 0.0))
    parts = [f"{process.cpus:g} CPUs, {process.gpus:g} GPUs for its process"]
    parts += [
        f"{_of_workers(one).cpus:g} CPUs, {_of_workers(one).gpus:g} GPUs for "
        f"{name}.workers {one.compute.workers} and their ingest"
        for name, one in there
    ]
    return TrialRoom(process, workers, " + ".join(parts))


def _in_process(job: TrainConfig) -> Room:
    return Room(job.compute.cpus_per_worker, _gpus(job))


def _of_workers(job: TrainConfig) -> Room:
    probeless = job.model_copy(update={"online_eval": type(job.online_eval)()})
    return Room(needed_cpus(probeless), job.compute.workers * _gpus(job))


def _gpus(job: TrainConfig) -> float:
    return job.compute.gpus_per_worker if job.compute.device == "cuda" else 0.0


def at_once(config: SweepConfig, trial: TrialRoom, cluster: Mapping[str, float]) -> int:
    """How many trials find room together.

    Args:
        config: whose budget may be less than the cluster.
        trial: what one takes.
        cluster: CPUs and GPUs of the cluster, by Ray's names.

    Raises:
        ConfigError: not even one does.
    """
    need, budget = trial.total, config.budget
    counts = []
    for name, needed, limit in (("CPU", need.cpus, budget.cpus), ("GPU", need.gpus, budget.gpus)):
        have = cluster.get(name, 0.0)
        key = f"budget.{name.lower()}s"
        usable = have if limit is None else min(have, limit)
        # A third of a GPU three times is a whole one.
        count = int(usable / needed + 1e-6) if needed else config.budget.trials
        if count < 1:
            limited = "" if limit is None else f", of which {key} allows {limit:g}"
            raise ConfigError(
                f"{name}s for one trial",
                found=f"{have:g} in the cluster{limited}",
                expected=f"at least {needed:g}: {trial.arithmetic}",
                fix="lower compute.* and ingest.* in settings, raise the budget, or add nodes",
            )
        counts.append(count)
    return min(*counts, budget.concurrent or budget.trials, budget.trials)


def check_population(
    members: int, together: int, trial: TrialRoom, nodes: Sequence[Mapping[str, Any]]
) -> None:
    """See that all members of a population run side by side.

    One that waits until others have ended has nobody to exchange with, and Tune would not say so.

    Args:
        members: to be run.
        together: trials that find room in the cluster and the budget, see `at_once`.
        trial: what one takes.
        nodes: as `ray.nodes()` tells them; a trial's process lies on one.

    Raises:
        ConfigError: they do not.
    """
    process = trial.process
    places = 0
    for have in _alive(nodes):
        counts = [members]
        for name, needed in (("CPU", process.cpus), ("GPU", process.gpus)):
            counts += [int(have.get(name, 0.0) / needed + 1e-6)] if needed else []
        places += min(counts)
    if min(together, places) < members:
        raise ConfigError(
            "room for a population",
            found=f"{min(together, places)} trials at a time, by cluster, nodes and budget",
            expected=f"all {members} members at once, each {trial.arithmetic}",
            fix="lower budget.trials or what a trial takes, raise budget.cpus or budget.gpus where "
            "they are set, or add nodes",
        )


def check_nodes(trial: TrialRoom, sweep: Sweep, nodes: Sequence[Mapping[str, Any]]) -> None:
    """See that every part that lies on one node finds one that is large enough.

    Args:
        trial: what one takes.
        sweep: whose workers are parts.
        nodes: as `ray.nodes()` tells them.

    Raises:
        ConfigError: a part is larger than any node.
    """
    jobs = [one for one in (sweep.default, sweep.default_finetune) if one is not None]
    parts = [("a trial's process", trial.process)]
    parts += [("a training worker", _in_process(one)) for one in jobs if one.compute.workers > 0]
    have = _alive(nodes)
    for name, part in parts:
        fits = any(
            node.get("CPU", 0.0) >= part.cpus and node.get("GPU", 0.0) >= part.gpus for node in have
        )
        if not fits:
            shown = ", ".join(f"{n.get('CPU', 0):g} CPUs {n.get('GPU', 0):g} GPUs" for n in have)
            raise ConfigError(
                f"a node for {name}",
                found=f"nodes of {shown}",
                expected=f"one with {part.cpus:g} CPUs and {part.gpus:g} GPUs",
                fix="lower compute.cpus_per_worker or compute.gpus_per_worker in settings",
            )


def _alive(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, float]]:
    """CPUs and GPUs of each node that lives, by Ray's names."""
    return [node["Resources"] for node in nodes if node.get("Alive")]
