"""How many trials run at once: never more than fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from lafs_ray.config.loader import resolve
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.concurrency import (
    Resources,
    check_nodes,
    check_population,
    max_concurrent,
    trial_resources,
)
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.trial_config import Sweep, read_sweep
from tests.training.faces import FINETUNE, PRETRAIN, ROOT
from tests.tuning.sweeps import PRETRAIN_SETTINGS, SETTINGS, sweep, tree

ON_GPU = {"compute.device": "cuda", "compute.precision": "bfloat16"}


def of(tmp_path: Path, settings: dict[str, Any], **changes: Any) -> Sweep:
    return sweep(tmp_path, "train.rec", settings=settings, **changes)


def test_trial_resources__in_one_process(tmp_path: Path) -> None:
    """Training and evaluation alternate, so the larger one counts; a GPU may be shared."""
    settings = {**ON_GPU, "compute.cpus_per_worker": 2, "compute.gpus_per_worker": 0.25}
    resources = trial_resources(of(tmp_path, settings, objective={"cpus": 3}))
    assert (resources.process, resources.workers) == (Resources(3, 0.25), Resources(0, 0))


def test_trial_resources__with_workers(tmp_path: Path) -> None:
    """Evaluation has a CPU of its own; each worker has preprocessors and one CPU for reading."""
    settings = {**ON_GPU, "compute.workers": 2, "ingest.actors_per_worker": 3}
    resources = trial_resources(of(tmp_path, settings, objective={"gpus": 0.5}))
    assert (resources.process, resources.workers) == (
        Resources(1, 0.5),
        Resources(2 * (1 + 3 + 1), 2),
    )
    assert "10 CPUs, 2 GPUs for compute.workers 2" in resources.arithmetic


def test_trial_resources__pretraining_and_finetuning_may_run_together(tmp_path: Path) -> None:
    """A checkpoint is finetuned while the pretraining goes on, so both count."""
    workers = {"compute.workers": 2, "ingest.actors_per_worker": 1}
    whole = {
        **tree(tmp_path, "train.rec"),
        "task": "pretrain",
        "base": str(ROOT / PRETRAIN),
        "settings": {**PRETRAIN_SETTINGS, **workers},
        "finetune": {"base": str(ROOT / FINETUNE), "settings": {**SETTINGS, **workers}},
    }
    resources = trial_resources(read_sweep(resolve(SweepConfig, whole, "sweep")))
    assert (resources.process, resources.workers) == (Resources(1, 0), Resources(6 + 6, 0))


def test_max_concurrent__by_the_scarcest(tmp_path: Path) -> None:
    one = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 0.25}, budget={"trials": 50})
    resources = trial_resources(one)
    assert max_concurrent(one.config, resources, {"CPU": 64, "GPU": 2}) == 8
    assert max_concurrent(one.config, resources, {"CPU": 5, "GPU": 2}) == 5
    shared = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 1 / 3}, budget={"trials": 50})
    assert max_concurrent(shared.config, trial_resources(shared), {"CPU": 64, "GPU": 1}) == 3
    for budget, expected in (
        ({"trials": 50, "gpus": 1}, 4),
        ({"trials": 50, "cpus": 3}, 3),
        ({"trials": 50, "max_concurrent": 2}, 2),
        ({"trials": 6}, 6),
    ):
        limited = of(tmp_path, {**ON_GPU, "compute.gpus_per_worker": 0.25}, budget=budget)
        assert max_concurrent(limited.config, resources, {"CPU": 64, "GPU": 2}) == expected, budget


def test_max_concurrent__not_one_fits(tmp_path: Path) -> None:
    """The error shows the arithmetic; Ray would wait forever."""
    one = of(tmp_path, {"compute.workers": 2, "ingest.actors_per_worker": 1})
    with pytest.raises(ConfigError, match="CPUs for one trial") as caught:
        max_concurrent(one.config, trial_resources(one), {"CPU": 6})
    assert caught.value.found == "6 in the cluster"
    assert caught.value.expected.startswith("at least 7: 1 CPUs, 0 GPUs for its process + 6 CPUs")
    limited = of(
        tmp_path,
        {"compute.workers": 2, "ingest.actors_per_worker": 1},
        budget={"trials": 4, "cpus": 3},
    )
    with pytest.raises(ConfigError, match="budget.cpus allows 3"):
        max_concurrent(limited.config, trial_resources(limited), {"CPU": 64})


def test_check_population__members_that_would_wait(tmp_path: Path) -> None:
    """A member that waits for others to end cannot copy them."""
    resources, large = (
        trial_resources(of(tmp_path, {})),
        {"Alive": True, "Resources": {"CPU": 64.0}},
    )
    with pytest.raises(ConfigError, match="resources for a population") as caught:
        check_population(4, 3, resources, [large])
    assert caught.value.found.startswith("3 concurrent trials")
    assert caught.value.expected == "all 4 members at once, each 1 CPUs, 0 GPUs for its process"
    check_population(4, 4, resources, [large])


def test_check_population__on_nodes_that_hold_one_each(tmp_path: Path) -> None:
    """Three nodes of three CPUs hold three processes of two, whatever the sum of their CPUs."""
    resources = trial_resources(of(tmp_path, {**ON_GPU, "compute.cpus_per_worker": 2}))
    node = {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 8.0}}
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    check_population(3, 4, resources, [node, node, node, gone])
    with pytest.raises(ConfigError, match="found: +3 concurrent trials"):
        check_population(4, 4, resources, [node, node, node, gone])


def test_check_nodes__a_part_larger_than_any_node(tmp_path: Path) -> None:
    """Enough CPUs in total do not help a worker that needs four on one node."""
    one = of(tmp_path, {"compute.workers": 2, "compute.cpus_per_worker": 4})
    small = {"Alive": True, "Resources": {"CPU": 2.0}}
    gone = {"Alive": False, "Resources": {"CPU": 64.0}}
    with pytest.raises(ConfigError, match="a node for a training worker") as caught:
        check_nodes(trial_resources(one), one, [small, small, gone])
    assert caught.value.found == "nodes of 2 CPUs, 0 GPUs; 2 CPUs, 0 GPUs"
    check_nodes(trial_resources(one), one, [small, {"Alive": True, "Resources": {"CPU": 4.0}}])
