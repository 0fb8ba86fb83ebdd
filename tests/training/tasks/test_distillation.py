"""Pretraining by distillation as a run: its metrics, its end and its resume, and the files that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError, UserError
from lafs_ray.evaluation.whitening import WhiteningOptions, whitened_network
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.checkpoint_file import checkpoint_path, load_checkpoint, save_checkpoint
from lafs_ray.training.checkpoint.inference import load_embedder, load_for_inference
from lafs_ray.training.prepare import prepare_run
from tests.training.faces import run, tiny

TEMPLATE = ("landmarks.source=template", "optim.warmup=0 steps")


def write_whitened(run_folder: Path, path: Path, faces: str, components: int) -> None:
    weights = load_for_inference(str(run_folder))
    fitted = whitened_network(weights, WhiteningOptions(faces, "all", components)).whitening
    assert fitted is not None
    write_weights(str(path), weights.read_by("all").whitened(fitted).without_heads())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """A run of one step, and two whitened files of its network."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(folder, face_set_path, *TEMPLATE, "duration=1 steps"))
    for components in (6, 7):
        write_whitened(folder / "debug", folder / f"{components}.safetensors", face_set_path, components)
    return folder


def distilled(folder: Path, data: str, teacher: Path, *more: str) -> PretrainConfig:
    return tiny(folder, data, *TEMPLATE, f"distillation.teacher={teacher}", *more)


def test_run__resumes_to_the_bit_and_gives_a_network(runs: Path, face_set_path: str, tmp_path: Path) -> None:
    """Of four steps; killed before the third and continued, metrics and embeddings are equal."""
    teacher = runs / "6.safetensors"
    whole = run(distilled(tmp_path / "whole", face_set_path, teacher, "checkpoints.every=2 steps"))
    assert {"loss", "similarity", "found"} <= whole.metrics[-1].keys()
    assert not {"teacher_entropy", "kl"} & whole.metrics[-1].keys()
    parted = distilled(tmp_path / "parted", face_set_path, teacher, "checkpoints.every=2 steps")
    run(parted, killed_at=2)
    run(parted)
    images = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = [load_embedder(str(tmp_path / name / "debug"))(images) for name in ("whole", "parted")]
    assert torch.equal(*found)
    assert found[0].shape == (3, 128)
    (line,) = whole.inputs.init_weights.report
    assert line == f"frozen network of {teacher}: readout all, whitened to 6 numbers"


def test_run__another_frozen_network_is_another_run(runs: Path, face_set_path: str, tmp_path: Path) -> None:
    """Whether the setting names another file, or the file has changed."""
    path = tmp_path / "teacher.safetensors"
    path.write_bytes((runs / "6.safetensors").read_bytes())
    run(distilled(tmp_path, face_set_path, path, "duration=1 steps"))
    with pytest.raises(ConfigError, match=r"distillation\.teacher: \S+/teacher\.safetensors -> \S+/7\.safetensors"):
        prepare_run(distilled(tmp_path, face_set_path, runs / "7.safetensors", "duration=1 steps"))
    path.write_bytes((runs / "7.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"distillation\.teacher: the file holds other weights now"):
        prepare_run(distilled(tmp_path, face_set_path, path, "duration=1 steps"))


def test_run__of_fewer_epochs_than_a_temperature_that_it_has_not(
    runs: Path, face_set_path: str, tmp_path: Path
) -> None:
    """The warm-up of the temperature of self-distillation, 30 epochs by default, does not limit its length."""
    warm = ("dino.teacher_temp.warmup_epochs=30", "duration=1 epochs")
    assert prepare_run(distilled(tmp_path, face_set_path, runs / "6.safetensors", *warm)).length.num_epochs == 1
    with pytest.raises(ConfigError, match=r"dino\.teacher_temp\.warmup_epochs: 30 of a run of 1 epochs"):
        tiny(tmp_path, face_set_path, *TEMPLATE, *warm)


@pytest.mark.parametrize("more", [("batch_size=1",), ("batch_size=8", "accumulation=8")])
def test_refused__micro_batches_of_one_face(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Among which each view would find its own face: a loss of 0 that teaches nothing."""
    with pytest.raises(ConfigError, match="micro-batches of 1 face"):
        distilled(tmp_path, "none.rec", tmp_path / "any.safetensors", *more)


def test_refused__settings_without_effect(tmp_path: Path) -> None:
    """A temperature without a frozen network, and the end of a run by metrics that a distillation has not."""
    with pytest.raises(ConfigError, match=r"distillation\.temp: 0\.1, but distillation\.teacher is not set"):
        tiny(tmp_path, "none.rec", *TEMPLATE, "distillation.temp=0.1")
    with pytest.raises(ConfigError, match=r"monitoring\.collapse: stop, but a distillation"):
        distilled(tmp_path, "none.rec", tmp_path / "any.safetensors", "monitoring.collapse=stop")
    for default in ("0.2", "0.05"):  # the second is that of earlier versions
        assert tiny(tmp_path, "none.rec", *TEMPLATE, f"distillation.temp={default}").distillation.teacher is None


@pytest.mark.parametrize("section", ["distillation", "monitoring"])
def test_settings_without_effect__of_an_earlier_run(
    runs: Path, face_set_path: str, tmp_path: Path, section: str
) -> None:
    """A checkpoint from before they were refused is read: what it holds cannot be left out."""
    without_effect = {"distillation": {"temp": 0.1}, "monitoring": {"collapse": "stop"}}[section]
    teacher = (f"distillation.teacher={runs / '6.safetensors'}",) if section == "monitoring" else ()
    run(tiny(tmp_path, face_set_path, *TEMPLATE, *teacher, "duration=1 steps"))
    path = checkpoint_path(str(tmp_path / "debug"), 1)
    content = load_checkpoint(path)
    content["config"][section] |= without_effect
    save_checkpoint(path, content)
    assert load_for_inference(path).step == 1


def test_refused__networks_that_do_not_fit(runs: Path, face_set_path: str, tmp_path: Path) -> None:
    """Without whitening, with other tokens, or missing: the message names the setting."""
    teacher = runs / "6.safetensors"
    with pytest.raises(CheckpointError, match=r"without a whitening"):
        prepare_run(distilled(tmp_path, face_set_path, runs / "debug"))
    with pytest.raises(CheckpointError, match=r"model\.patch_size 16"):
        prepare_run(distilled(tmp_path, face_set_path, teacher, "model.patch_size=14"))
    with pytest.raises(UserError, match="nowhere"):
        prepare_run(distilled(tmp_path, face_set_path, tmp_path / "nowhere.safetensors"))
    with pytest.raises(ConfigError, match=r"distillation\.teacher.*start\.student"):
        distilled(tmp_path, face_set_path, teacher, f"start.student={runs / 'debug'}")
