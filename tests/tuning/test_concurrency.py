"""How many trials run at once: never more than fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from lafs_ray.config.loader import resolve
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.concurrency import Resources, max_concurrent, trial_resources
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
    assert (resources.process, resources.workers) == (Resources(1, 0.5), Resources(2 * (1 + 3 + 1), 2))
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


def node(cpus: float, gpus: float = 0.0) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}}


DEAD = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}


def test_max_concurrent__by_the_scarcest(tmp_path: Path) -> None:
    def fitting(have: tuple[int, int], share: float = 0.25, **budget: Any) -> int:
        settings = {**ON_GPU, "compute.gpus_per_worker": share}
        one = of(tmp_path, settings, budget={"trials": 50, **budget})
        return max_concurrent(one, trial_resources(one), [node(*have), DEAD])

    assert fitting((64, 2)) == 8
    assert fitting((5, 2)) == 5
    assert fitting((64, 1), share=1 / 3) == 3
    assert fitting((64, 2), gpus=1) == 4
    assert fitting((64, 2), cpus=3) == 3
    assert fitting((64, 2), max_concurrent=2) == 2
    assert fitting((64, 2), trials=6) == 6


def test_max_concurrent__not_one_fits(tmp_path: Path) -> None:
    """The error shows the arithmetic; Ray would wait forever."""
    settings = {"compute.workers": 2, "ingest.actors_per_worker": 1}
    one = of(tmp_path, settings)
    with pytest.raises(ConfigError, match="CPUs for one trial") as caught:
        max_concurrent(one, trial_resources(one), [node(6), DEAD])
    assert caught.value.found == "6 in the cluster"
    assert caught.value.expected.startswith("at least 7: 1 CPUs, 0 GPUs for its process + 6 CPUs")
    limited = of(tmp_path, settings, budget={"trials": 4, "cpus": 3})
    with pytest.raises(ConfigError, match="budget.cpus allows 3"):
        max_concurrent(limited, trial_resources(limited), [node(64)])


def test_max_concurrent__members_that_would_wait(tmp_path: Path) -> None:
    """A member that waits for others to end cannot copy them."""
    one = of(tmp_path, {}, budget={"trials": 4})
    with pytest.raises(ConfigError, match="resources for a population") as caught:
        max_concurrent(one, trial_resources(one), [node(3)], members=4)
    assert caught.value.found.startswith("3 concurrent trials")
    assert caught.value.expected == "all 4 members at once, each 1 CPUs, 0 GPUs for its process"
    assert max_concurrent(one, trial_resources(one), [node(4)], members=4) == 4


def test_max_concurrent__on_nodes_that_hold_one_each(tmp_path: Path) -> None:
    """Three nodes of three CPUs hold three processes of two, whatever the sum of their CPUs."""
    one = of(tmp_path, {**ON_GPU, "compute.cpus_per_worker": 2}, budget={"trials": 4})
    nodes = [node(3, 8), node(3, 8), node(3, 8), DEAD]
    assert max_concurrent(one, trial_resources(one), nodes, members=3) == 3
    with pytest.raises(ConfigError, match="found: +3 concurrent trials"):
        max_concurrent(one, trial_resources(one), nodes, members=4)


def test_max_concurrent__a_part_larger_than_any_node(tmp_path: Path) -> None:
    """Enough CPUs in total do not help a worker that needs four on one node."""
    one = of(tmp_path, {"compute.workers": 2, "compute.cpus_per_worker": 4})
    small = [node(2) for _ in range(16)]
    with pytest.raises(ConfigError, match="a node for a training worker") as caught:
        max_concurrent(one, trial_resources(one), [*small, DEAD])
    assert caught.value.found.startswith("nodes of 2 CPUs, 0 GPUs; 2 CPUs, 0 GPUs")
    assert max_concurrent(one, trial_resources(one), [*small, node(4)]) == 1
