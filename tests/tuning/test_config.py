"""The settings of a sweep: every error with its key and value, before anything is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import Tuning, load, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.yaml_text import read_yaml, write_yaml
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.leakage import training_sets
from lafs_ray.tuning.trial_config import Sweep, read_sweep, with_settings
from lafs_ray.tuning.validation import find_errors, known_settings, marked_keys
from tests.training.faces import ROOT

FEW_SHOT = str(ROOT / "configs" / "finetune" / "few_shot.yaml")
LAFS = str(ROOT / "configs" / "pretrain" / "lafs.yaml")
LR = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}}
PAIRS = {"metric": "pair_accuracy", "pairs": "select.bin"}


def sweep(space: dict[str, Any] | None = None, **changes: Any) -> Sweep:
    tree = {
        "name": "a",
        "task": "finetune",
        "base": FEW_SHOT,
        "space": LR if space is None else space,
        "objective": PAIRS,
        **changes,
    }
    return read_sweep(resolve(SweepConfig, tree, "sweep"))


def test_find_errors__of_a_valid_sweep() -> None:
    assert find_errors(sweep()) == []


@pytest.mark.parametrize("name", ["few_shot", "augmentation", "debug"])
def test_configs__are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ready-made sweeps load, and their spaces and bases go together."""
    monkeypatch.chdir(ROOT)
    config = load(SweepConfig, f"configs/sweep/{name}.yaml")
    assert find_errors(read_sweep(config)) == []


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ({"optim.lrr": {"uniform": [0, 1]}}, {}, "space.optim.lrr: unknown key; did you mean 'lr'"),
        (
            {"optim.layer_decay": {"uniform": [0.5, 1.5]}},
            {},
            "space.optim.layer_decay: 1.5 - input should be less than or equal to 1",
        ),
        ({"augmentation.rand_augment": {"choice": [1, 10]}}, {}, "space.augmentation.rand_augment: 10"),
        (
            {"mixup.probability": {"choice": [0.0, 0.1]}, "batch_size": {"choice": [24, 12]}},
            {"settings": {"accumulation": 2, "mixup.probability": 0}},
            "micro-batch has 3: batch_size 12",
        ),
        (
            {"mixup.alpha": {"uniform": [0, 1], "when": {"mixup.probability": [0.1]}}},
            {},
            "space.mixup.alpha.when: mixup.probability is not a key of the space before mixup.alpha; those: none",
        ),
        (
            {
                "mixup.probability": {"uniform": [0, 1]},
                "mixup.alpha": {"uniform": [0.1, 1], "when": {"mixup.probability": [0.1]}},
            },
            {},
            "mixup.probability is uniform; a condition requires choice or integer",
        ),
        (
            {
                "mixup.probability": {"choice": [0, 0.1]},
                "mixup.alpha": {"uniform": [0.1, 1], "when": {"mixup.probability": [0.2]}},
            },
            {},
            "space.mixup.alpha.when: mixup.probability is never 0.2",
        ),
        (
            {"compute.workers": {"choice": [1, 2]}},
            {},
            "space.compute.workers: changes where a run computes or what it logs",
        ),
        (
            {"mixup": {"choice": [{"probability": 0.1}]}, "mixup.alpha": {"uniform": [0.1, 1]}},
            {},
            "space.mixup.alpha: mixup is in the space as a whole",
        ),
        (
            {"margin.margin": {"uniform": [0, 0.5]}},
            {"objective": {"metric": "loss"}},
            "space.margin.margin: changes what the loss measures",
        ),
        (LR, {"objective": {"metric": "knn"}}, "objective.identities: required by knn"),
        (
            LR,
            {"objective": {"metric": "pair_accuracy", "identities": "val.rec", "pairs": "a.bin"}},
            "objective.identities: .*val.rec, but pair_accuracy does not read it",
        ),
        (LR, {"confirm": {"pairs": "b.bin", "seeds": [0, 9]}}, r"confirm.seeds: \[0\] are in objective.seeds"),
        (
            LR,
            {"objective": {"metric": "loss"}, "confirm": {"pairs": "b.bin"}},
            "confirm.metric: required, as objective.metric=loss",
        ),
        (
            LR,
            {"scheduler": {"kind": "asha", "grace_period": 4}},
            "scheduler.grace_period: 4, but a trial's last report is 4 reports \\+ 1 seeds - 1 = 4",
        ),
        (LR, {"searcher": {"kind": "grid"}}, "grid requires choice, but not so: optim.lr"),
        *(
            (
                {"optim.lr": {"choice": [1e-3, 2e-3, 3e-3]}},
                {"searcher": {"kind": "grid"}, "budget": {"trials": trials}},
                f"budget.trials: {trials}, but the grid has 3 points; write 3",
            )
            for trials in (2, 4)
        ),
        (
            {"optim.layer_decay": {"uniform": [0.5, 1]}},
            {"scheduler": {"kind": "pbt"}},
            "space.optim.layer_decay: cannot change when training resumes from a checkpoint",
        ),
        (
            LR,
            {"scheduler": {"kind": "pbt"}, "objective": {**PAIRS, "seeds": [0, 1]}},
            r"objective.seeds: \[0, 1\], but pbt trains one seed per member",
        ),
        (
            LR,
            {"scheduler": {"kind": "pbt"}, "budget": {"trials": 3}},
            "budget.trials: 3 × scheduler.quantile_fraction 0.25 is less than one member",
        ),
        (
            LR,
            {"scheduler": {"kind": "pbt"}, "budget": {"trials": 8, "max_concurrent": 4}},
            "budget.max_concurrent: 4, but all 8 members of a population must run at once",
        ),
        (LR, {"finetune": {"base": FEW_SHOT}}, "finetune: requires task: pretrain"),
        (LR, {"settings": {"optim": {"lr": -1}}}, "few_shot.yaml with settings: optim.lr: -1"),
    ],
)
def test_find_errors__names_key_and_value(space: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    found = "\n".join(find_errors(sweep(space, **changes)))
    assert re.search(message, found), found


def test_find_errors__all_at_once() -> None:
    """All errors are found in one pass."""
    found = find_errors(
        sweep(
            {"run.seed": {"integer": [0, 9]}},
            objective={"metric": "knn"},
            scheduler={"grace_period": 9},
            settings={"optim.lr": -1.0},
        )
    )
    assert len(found) == 4, found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space: {} - .* should have at least 1 item"),
        ({"objective": {"metric": "f1"}}, "objective.metric: 'f1'"),
        (
            {"objective": {"metric": "tar_at_far", "far": 0.5, "pairs": "a"}},
            "far: 0.5 is never reported; write one of 0.1, 0.01, 0.001",
        ),
        ({"objective": {**PAIRS, "seeds": [1, 1]}}, r"seeds: \[1, 1\] - write each once"),
        ({"scheduler": {"kind": "median", "reduction_factor": 3}}, "reduction_factor: not an option of median, which"),
        ({"scheduler": {"kind": "none", "grace_period": 1}}, "grace_period: not an option of none"),
        ({"searcher": {"kind": "random", "startup_trials": 3}}, "startup_trials: not an option of random"),
        ({"budgett": {}}, "budgett: unknown key; did you mean 'budget'"),
        ({"space": {"optim.lr": {"uniform": [2, 1]}}}, r"space.optim.lr: uniform: \[2, 1\] - write"),
    ],
)
def test_sweep_config__invalid(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(**changes)


def test_space__nested_as_the_command_line_nests_it(tmp_path: Path) -> None:
    """`space.optim.lr.uniform=[0.1, 0.2]` replaces what the file says of that key."""
    file = tmp_path / "a.yaml"
    file.write_text(write_yaml({"name": "a", "task": "finetune", "base": FEW_SHOT, "space": LR}))
    overrides = ["space.optim.lr.uniform=[0.1, 0.2]", "space.mixup.probability.choice=[0, 0.1]"]
    space = load(SweepConfig, str(file), overrides).space
    assert [*space] == ["optim.lr", "mixup.probability"]
    assert (space["optim.lr"].kind, space["optim.lr"].edges()) == ("uniform", [0.1, 0.2])


def test_finetune_of_a_pretraining_sweep__another_network() -> None:
    """A finetuning that cannot load the trial's networks is an error before the sweep starts."""
    found = find_errors(
        sweep(
            {"landmarks.noise_px": {"uniform": [0, 5]}},
            task="pretrain",
            base=LAFS,
            finetune={"base": FEW_SHOT, "settings": {"model.num_landmarks": 49}},
        )
    )
    assert len(found) == 1, found
    assert "finetune: model.num_landmarks is 49, but 196 in the pretraining" in found[0]


def test_known_settings__of_each_searcher() -> None:
    """Random trials and grids are known before the first has run, in number and value."""
    assert len(known_settings(sweep(budget={"trials": 7}).config)) == 7
    grid = sweep({"optim.lr": {"choice": [1e-3, 2e-3]}}, searcher={"kind": "grid"})
    assert known_settings(grid.config) == [{"optim.lr": 1e-3}, {"optim.lr": 2e-3}]


def test_with_settings__by_section_and_by_dotted_key() -> None:
    """Both notations mean the same; the last one wins."""
    tree = {"optim": {"lr": 1.0, "warmup": "5 epochs"}}
    expected = {"optim": {"lr": 2.0, "warmup": "5 epochs"}, "data": {"path": "b"}}
    assert with_settings(tree, {"optim": {"lr": 2.0}, "data.path": "b"}) == expected
    assert with_settings(tree, {"optim.lr": 3.0, "data.path": "b", "optim": {"lr": 2.0}}) == expected


def test_run_config__of_a_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is in the sweep's directory under its seed, its paths are absolute, and nothing else of the base changes."""
    monkeypatch.chdir(tmp_path)
    one = sweep(settings={"start.landmarks": "untrained", "regularizer.strength": 0})
    config = one.run_config({"optim.lr": 3e-4}, name="s5", storage="/f", seed=5)
    assert isinstance(config, FinetuneConfig)
    assert (config.run.name, config.run.storage, config.run.seed) == ("s5", "/f", 5)
    assert config.data.path == str(tmp_path / "train.rec")
    assert config.start.transformer == str(tmp_path / "runs" / "lafs")
    assert config.start.landmarks == "untrained"
    assert config.optim.lr == 3e-4
    expected = one.default.model_dump(exclude={"run", "data", "start", "checkpoints"})
    expected["optim"]["lr"] = 3e-4
    assert config.model_dump(exclude={"run", "data", "start", "checkpoints"}) == expected


def test_run_config__of_a_trial_on_several_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The paths of a mix are absolute too, and its shares can be searched."""
    monkeypatch.chdir(tmp_path)
    sets = [{"path": "a.rec", "share": 0.7}, {"path": "s3://b/c.rec", "share": 0.3}]
    settings = {"start.landmarks": "untrained", "regularizer.strength": 0, "data.mix": sets}
    one = sweep({"data.mix.1.share": {"uniform": [0.1, 0.5]}}, settings=settings)
    assert find_errors(one) == []
    config = one.run_config({"data.mix.1.share": 0.5}, name="s5", storage="/f", seed=5)
    assert config.data.path is None
    assert [(s.path, s.share) for s in config.data.sets] == [(str(tmp_path / "a.rec"), 0.7), ("s3://b/c.rec", 0.5)]
    assert [file.path for file in training_sets(one)][:2] == [str(tmp_path / "a.rec"), "s3://b/c.rec"]


def test_write_yaml__reads_back_as_it_was(tmp_path: Path) -> None:
    """Numbers, strings that look like numbers, null and lists survive a round trip."""
    tree = {
        "run": {"name": "1e3"},
        "a": [1e-05, 0.1, 3, None, True, "true", "no", "1e-3", "5 epochs"],
        "b": {"c": [[0.5, 1.0], ["0.2 run", 1000]]},
    }
    (tmp_path / "a.yaml").write_text(write_yaml(tree))
    assert read_yaml(str(tmp_path / "a.yaml")) == tree


def test_find_errors__circular_conditions() -> None:
    """Two keys that are each other's condition are named, not followed forever."""
    space = {
        "mixup.probability": {"choice": [0, 0.1], "when": {"augmentation.rand_augment": [1]}},
        "augmentation.rand_augment": {"choice": [1, 2], "when": {"mixup.probability": []}},
    }
    found = find_errors(sweep(space))
    assert len(found) == 2, found
    assert "augmentation.rand_augment is not a key of the space before" in found[0]
    assert "mixup.probability is never any value listed" in found[1]


def test_marked_keys__of_both_jobs() -> None:
    """The marks of the fields, as far as the method and the optimizer's state decide them.

    Layer decay is not mutable: the optimizer's state keeps the learning rate of each layer.
    """
    common = ["model.dropout", "model.drop_path"]
    assert marked_keys(FinetuneConfig, Tuning.MUTABLE) == [
        *common,
        *("margin.scale", "margin.margin", "regularizer", "augmentation", "mixup"),
        *("optim.lr", "optim.min_lr", "optim.weight_decay"),
    ]
    assert marked_keys(PretrainConfig, Tuning.MUTABLE) == [
        *common,
        *(f"landmarks.{name}" for name in ("noise_px", "local_tokens", "shuffle", "replacement")),
        "views",
        *("dino.student_temp", "dino.teacher_temp", "dino.center_momentum"),
        *("dino.teacher_momentum", "dino.koleo", "distillation.temp"),
        *("optim.lr", "optim.min_lr", "optim.weight_decay", "optim.weight_decay_end"),
        "optim.clip_grad",
    ]
    losses = {"margin", "mixup", "regularizer", "augmentation"}
    assert {*marked_keys(FinetuneConfig, Tuning.DEFINES_LOSS)} == losses
    losses = {"dino", "head", "views", "landmarks", "distillation", "neighbors"}
    assert {*marked_keys(PretrainConfig, Tuning.DEFINES_LOSS)} == losses
    operational = {"run", "checkpoints", "log", "monitoring", "compute", "ingest", "online_eval"}
    operational |= {f"data.{name}" for name in ("path", "color_order", "max_bad_records")}
    assert {*marked_keys(FinetuneConfig, Tuning.OPERATIONAL)} == operational
    assert {*marked_keys(PretrainConfig, Tuning.OPERATIONAL)} == {*operational, "crops"}
