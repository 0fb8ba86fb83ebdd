"""How many trials run at once: by construction never more than find room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from lafs_ray.config.loader import resolve
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.concurrency import (
    Room,
    at_once,
    check_nodes,
    check_population,
    trial_room,
)
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.trial_config import Sweep, read_sweep
from tests.training.faces import FINETUNE, PRETRAIN, ROOT
from tests.tuning.sweeps import PRETRAIN_SETTINGS, SETTINGS, sweep, tree

ON_GPU = {"compute.device": "cuda", "compute.precision": "bfloat16"}


def of(tmp_path: Path, settings: dict[str, Any], **changes: Any) -> Sweep:
    return sweep(tmp_path, "train.rec", settings=settings, **changes)


def test_trial_room__in_one_process(tmp_path: Path) -> None:
    """Training and judging take turns, so the larger one counts; a GPU may be shared."""
    settings = {**ON_GPU, "compute.cpus_per_worker": 2, "compute.gpus_per_worker": 0.25}
    room = trial_room(of(tmp_path, settings, objective={"cpus": 3}))
    assert (room.process, room.workers) == (Room(3, 0.25), Room(0, 0))


def test_trial_room__with_workers(tmp_path: Path) -> None:
    """Judging has its own CPU; each worker has croppers and one CPU worth of reading."""
    settings = {**ON_GPU, "compute.workers": 2, "ingest.actors_per_worker": 3}
    room = trial_room(of(tmp_path, settings, objective={"gpus": 0.5}))
    assert (room.process, room.workers) == (Room(1, 0.5), Room(2 * (1 + 3 + 1), 2))
    assert "10 CPUs, 2 GPUs for compute.workers 2" in room.arithmetic


def test_trial_room__pretraining_and_finetuning_may_run_together(tmp_path: Path) -> None:
    """A checkpoint is finetuned while the pretraining goes on, so both count."""
    workers = {"compute.workers": 2, "ingest.actors_per_worker": 1}
    whole = {
        **tree(tmp_path, "train.rec"),
        "job": "pretrain",
        "base": str(ROOT / PRETRAIN),
        "settings": {**PRETRAIN_SETTINGS, **workers},
        "finetune": {"base": str(ROOT / FINETUNE), "settings": {**SETTINGS, **workers}},
    }
    room = trial_room(read_sweep(resolve(SweepConfig, whole, "sweep")))
    assert (room.process, room.workers) == (Room(1, 0), Room(6 + 6, 0))


def test_at_once__by_the_scarcest(tmp_path: Path) -> None:
    one = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 0.25}, budget={"trials": 50})
    room = trial_room(one)
    assert at_once(one.config, room, {"CPU": 64, "GPU": 2}) == 8
    assert at_once(one.config, room, {"CPU": 5, "GPU": 2}) == 5
    shared = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 1 / 3}, budget={"trials": 50})
    assert at_once(shared.config, trial_room(shared), {"CPU": 64, "GPU": 1}) == 3
    for budget, expected in (
        ({"trials": 50, "gpus": 1}, 4),
        ({"trials": 50, "cpus": 3}, 3),
        ({"trials": 50, "concurrent": 2}, 2),
        ({"trials": 6}, 6),
    ):
        limited = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 0.25}, budget=budget)
        assert at_once(limited.config, room, {"CPU": 64, "GPU": 2}) == expected, budget


def test_at_once__no_room_for_one(tmp_path: Path) -> None:
    """Refused with the arithmetic: Ray would wait for ever."""
    one = of(tmp_path, {"compute.workers": 2, "ingest.actors_per_worker": 1})
    with pytest.raises(ConfigError, match="CPUs for one trial") as caught:
        at_once(one.config, trial_room(one), {"CPU": 6})
    assert caught.value.found == "6 in the cluster"
    assert caught.value.expected.startswith("at least 7: 1 CPUs, 0 GPUs for its process + 6 CPUs")
    limited = of(
        tmp_path,
        {"compute.workers": 2, "ingest.actors_per_worker": 1},
        budget={"trials": 4, "cpus": 3},
    )
    with pytest.raises(ConfigError, match="budget.cpus allows 3"):
        at_once(limited.config, trial_room(limited), {"CPU": 64})


def test_check_population__members_that_would_wait(tmp_path: Path) -> None:
    """Who waits for others to end exchanges nothing with them."""
    room, large = trial_room(of(tmp_path, {})), {"Alive": True, "Resources": {"CPU": 64.0}}
    with pytest.raises(ConfigError, match="room for a population") as caught:
        check_population(4, 3, room, [large])
    assert caught.value.found.startswith("3 trials at a time")
    assert caught.value.expected == "all 4 members at once, each 1 CPUs, 0 GPUs for its process"
    check_population(4, 4, room, [large])


def test_check_population__on_nodes_that_hold_one_each(tmp_path: Path) -> None:
    """Three nodes of three CPUs hold three processes of two, whatever their sum."""
    room = trial_room(of(tmp_path, {**ON_GPU, "compute.cpus_per_worker": 2}))
    node = {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 8.0}}
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    check_population(3, 4, room, [node, node, node, gone])
    with pytest.raises(ConfigError, match="found: +3 trials at a time"):
        check_population(4, 4, room, [node, node, node, gone])


def test_check_nodes__a_part_larger_than_any_node(tmp_path: Path) -> None:
    """Enough CPUs in all are of no use to a worker that wants four on one node."""
    one = of(tmp_path, {"compute.workers": 2, "compute.cpus_per_worker": 4})
    small = {"Alive": True, "Resources": {"CPU": 2.0}}
    gone = {"Alive": False, "Resources": {"CPU": 64.0}}
    with pytest.raises(ConfigError, match="a node for a training worker") as caught:
        check_nodes(trial_room(one), one, [small, small, gone])
    assert caught.value.found == "nodes of 2 CPUs 0 GPUs, 2 CPUs 0 GPUs"
    check_nodes(trial_room(one), one, [small, {"Alive": True, "Resources": {"CPU": 4.0}}])
