"""Pretraining that starts from another one, and runs that are made longer on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lafs_ray.config.loader import resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import local_stream
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.prepare import RunInputs, check_run, prepare_run
from lafs_ray.training.runner import run_local
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.train_loop import train
from tests.training.faces import tiny

SETTINGS = ["log.every_steps=1", "checkpoints.every=2 steps", "checkpoints.keep=9"]


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """The folder of a pretraining of four steps, with checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("donor")
    run_local(prepare_run(tiny(folder, face_set_path, *SETTINGS, "duration=4 steps")))
    return folder / "debug"


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(str(folder / "metrics.jsonl"))]


def loss_of_step(inputs: RunInputs, step: int) -> float:
    """The loss that a run's initial weights have on the batch of a step."""
    training = build_training(
        inputs.config, inputs.sampler, inputs.num_classes, inputs.init_weights, torch.device("cpu")
    )
    found: list[float] = []
    train(
        training,
        local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), step, step + 1),
        Meter(inputs.config.batch_size),
        last_step=step + 1,
        report=lambda line: found.append(line["loss"]),
        report_every=1,
        save=lambda _: None,
        save_every=100,
    )
    return found[0]


def test_start__first_loss_is_the_donors_next(tmp_path: Path, face_set_path: str, donor: Path) -> None:
    """With the student, teacher and center of a checkpoint, the next batch has the loss that the donor had on it."""
    checkpoint = donor / "checkpoints" / "step-00000002.pt"
    config = tiny(tmp_path, face_set_path, *SETTINGS, "duration=4 steps", f"start.student={checkpoint}")
    inputs = check_run(config)
    assert loss_of_step(inputs, 2) == losses(donor)[2]
    assert [line.split(":")[0] for line in inputs.init_weights.report] == ["student"] * 2 + ["teacher"] * 2 + ["center"]
    # Not so from scratch, so the start matters.
    scratch = check_run(tiny(tmp_path, face_set_path, *SETTINGS, "duration=4 steps"))
    assert loss_of_step(scratch, 2) != losses(donor)[2]


def test_start__head_of_another_size_is_named(tmp_path: Path, face_set_path: str, donor: Path) -> None:
    """A head that does not fit starts from scratch, center included; the report says which tensor, and why."""
    config = tiny(tmp_path, face_set_path, "head.num_prototypes=32", f"start.student={donor}")
    inputs = check_run(config)
    assert any("head starts from scratch: head.last_layer" in line for line in inputs.init_weights.report)
    assert inputs.init_weights.report[-1].startswith("center: starts at 0, as the head is new")
    run_local(prepare_run(tiny(tmp_path, face_set_path, *config_of(donor), "duration=1 steps")))
    assert len(losses(tmp_path / "debug")) == 1


def config_of(donor: Path) -> list[str]:
    return ["head.num_prototypes=32", f"start.student={donor}", "log.every_steps=1", "optim.warmup=1 steps"]


def test_start__of_another_architecture(tmp_path: Path, face_set_path: str, donor: Path) -> None:
    """A transformer that does not fit is refused with the settings to change."""
    with pytest.raises(CheckpointError, match=r"start\.student") as caught:
        check_run(tiny(tmp_path, face_set_path, "model.size=small", f"start.student={donor}"))
    assert "model.size=tiny" in caught.value.fix


def test_start__gives_what_is_not_set(tmp_path: Path, face_set_path: str, donor: Path) -> None:
    """model.* and the landmark CNN are the donor's unless set."""
    tree = {
        "run": {"name": "a", "storage": str(tmp_path)},
        "data": {"path": face_set_path},
        "start": {"student": str(donor)},
        "landmarks": {"local_tokens": 9},
        "head": {"num_prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16},
        "duration": "4 steps",
        "batch_size": 8,
        "optim": {"warmup": "2 steps"},
        "dino": {"teacher_temp": {"warmup_epochs": 0}},
        "compute": {"device": "cpu", "precision": "float32", "workers": 0},
    }
    config = check_run(resolve(PretrainConfig, tree, "test")).config
    assert isinstance(config, PretrainConfig)
    assert (config.model.size, config.model.num_landmarks, config.model.patch_size) == ("tiny", 49, 16)
    assert config.model.landmark_cnn_width == 0.25
    assert config.landmarks.weights == str(donor)
    tree["model"] = {"size": "small"}
    with pytest.raises(CheckpointError, match=r"start\.student"):
        check_run(resolve(PretrainConfig, tree, "test"))


def test_start__of_a_template(tmp_path: Path, face_set_path: str) -> None:
    """The template's positions are no landmark CNN that could be built: the run keeps its own landmarks."""
    template = ["landmarks.source=template", "landmarks.weights=null", "duration=1 steps", "optim.warmup=0 steps"]
    run_local(prepare_run(tiny(tmp_path / "donor", face_set_path, *template)))
    start = f"start.student={tmp_path / 'donor' / 'debug'}"
    tree = tiny(tmp_path / "run", face_set_path, *template, start).model_dump(mode="json", exclude_defaults=True)
    tree["model"] = {}
    inputs = check_run(resolve(PretrainConfig, tree, "test"))
    assert inputs.config.model.num_landmarks == 49
    assert inputs.init_weights.report[0].startswith("student: transformer taken from")


def test_start__null_and_teacher_alone(tmp_path: Path, face_set_path: str) -> None:
    """A section cannot be null, and a teacher needs a student: both errors name the keys."""
    with pytest.raises(ConfigError) as caught:
        tiny(tmp_path, face_set_path, "start=null")
    assert "start: None, but it is a section; set its keys: start.student, start.teacher" in caught.value.found
    with pytest.raises(ConfigError, match=r"start\.student, which is trained"):
        tiny(tmp_path, face_set_path, "start.teacher=x")


def test_extend__keeps_what_was(tmp_path: Path, face_set_path: str) -> None:
    """A finished run becomes longer: its losses stay, and its folder records the change; without it, it is refused."""
    run_local(prepare_run(tiny(tmp_path, face_set_path, *SETTINGS, "duration=2 steps")))
    folder = tmp_path / "debug"
    before = (folder / "metrics.jsonl").read_text()
    longer = tiny(tmp_path, face_set_path, *SETTINGS, "duration=4 steps", "optim.lr=1e-4")
    with pytest.raises(ConfigError, match="another run") as caught:
        prepare_run(longer)
    assert "--extend" in caught.value.fix
    run_local(prepare_run(longer, extend=True))
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert len(losses(folder)) == 4
    (extension,) = json.loads((folder / "config.json").read_text())["extensions"]
    assert extension["after_step"] == 2
    assert extension["changes"] == ["duration: 2 steps -> 4 steps", "optim.lr: 0.0005 -> 0.0001"]
    # From then on it is the run's configuration, and the record stays.
    prepare_run(longer)
    assert len(json.loads((folder / "config.json").read_text())["extensions"]) == 1


def test_extend__nothing_else_changes(tmp_path: Path, face_set_path: str) -> None:
    """--extend allows no other difference."""
    prepare_run(tiny(tmp_path, face_set_path, *SETTINGS, "duration=2 steps"))
    other = tiny(tmp_path, face_set_path, *SETTINGS, "duration=4 steps", "batch_size=16", "views.flip=0.1")
    with pytest.raises(ConfigError, match="another run") as caught:
        prepare_run(other, extend=True)
    assert "batch_size: 8 -> 16" in caught.value.found
    assert "duration" not in caught.value.found
    assert "--extend changes only the length and the schedule" in caught.value.expected
