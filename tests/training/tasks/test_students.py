"""Runs whose transformer is a timm ViT: pretraining, finetuning, what they give, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lafs_ray
from lafs_ray.compat import import_timm
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.methods.lafs import Lafs
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.models.checkpoints.timm_names import to_timm
from lafs_ray.training.checkpoint.inference import load_embedder, load_for_inference
from lafs_ray.training.prepare import check_run
from lafs_ray.training.tasks.build import build_training
from tests.training.faces import run, tiny

STUDENT = ["model.size=base", "model.student=timm/test_vit"]
IMAGES = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
SHORT = ["run.name=net", "duration=2 steps", "optim.warmup=1 steps"]


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Folder of a short pretraining over landmarks."""
    folder = tmp_path_factory.mktemp("donor")
    run(tiny(folder, face_set_path, *STUDENT, *SHORT))
    return folder / "net"


def embeddings(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_embedder(str(path))(IMAGES)


def test_pretraining__gives_an_embedder(donor: Path, tmp_path: Path) -> None:
    """A run's teacher embeds faces, and a weights file of it the same."""
    weights = load_for_inference(str(donor))
    assert weights.architecture.lines()[1] == "transformer: timm/test_vit, width 64, depth 6, heads 2 × 32, MLP 192"
    write_weights(str(tmp_path / "a.safetensors"), weights)
    assert torch.equal(embeddings(tmp_path / "a.safetensors"), embeddings(donor))
    assert embeddings(donor).isfinite().all()


def test_grid_run__is_timms_own_network(tmp_path: Path, face_set_path: str) -> None:
    """Pretrained over the plain grid, timm's module computes the run's embeddings from its tensors."""
    run(tiny(tmp_path, face_set_path, *STUDENT, *SHORT, "landmarks.source=grid"))
    weights = load_for_inference(str(tmp_path / "net"))
    theirs = import_timm().create_model("test_vit", img_size=112, patch_size=16, num_classes=0).eval()
    theirs.load_state_dict(to_timm(weights.state.backbone, weights.architecture), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(IMAGES), embeddings(tmp_path / "net"), atol=1e-5, rtol=0)


def test_finetuning__starts_from_a_pretraining(donor: Path, tmp_path: Path, face_set_path: str) -> None:
    """Before its first step, the network embeds as the pretraining's; afterwards not."""
    settings = [*STUDENT, *SHORT, f"start.transformer={donor}", "checkpoints.every=1 steps", "optim.layer_decay=0.5"]
    config = tiny(tmp_path, face_set_path, *settings, kind=FinetuneConfig)
    run(config)
    first, last = (tmp_path / "net/checkpoints" / f"step-{step:08}.pt" for step in (1, 2))
    # The warm-up's first step has a learning rate of 0; only batch statistics of the landmark CNN move.
    names = [name for name in load_for_inference(str(donor)).state.backbone if name.startswith("transformer.")]
    states = [load_for_inference(str(path)).state.backbone for path in (donor, first, last)]
    assert names
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)
    assert not any(torch.equal(states[0][name], states[2][name]) for name in names if name.endswith("qkv.weight"))


def test_continued_pretraining__adopts_the_student(donor: Path, tmp_path: Path, face_set_path: str) -> None:
    """start.student gives model.student where no size is set, and a size that is set is checked."""
    config = tiny(tmp_path, face_set_path, *STUDENT, *SHORT)
    unset = config.model_dump(mode="json", exclude_unset=True)
    for key in ("size", "student"):
        unset["model"].pop(key)
    unset["start"] = {"student": str(donor)}
    assert check_run(type(config).model_validate(unset)).config.model.student == "timm/test_vit"
    unset["model"]["size"] = "tiny"
    with pytest.raises(CheckpointError) as caught:
        check_run(type(config).model_validate(unset))
    assert "model.student=timm/test_vit" in caught.value.fix


def test_start__of_another_student(donor: Path, tmp_path: Path, face_set_path: str) -> None:
    """A student that does not fit is refused with the setting to change, in both directions."""
    settings = [*SHORT, f"start.transformer={donor}"]
    with pytest.raises(CheckpointError) as caught:
        check_run(tiny(tmp_path, face_set_path, *settings, kind=FinetuneConfig))
    assert "set model.student=timm/test_vit, model.num_landmarks=49" in caught.value.fix
    fvit = lafs_ray.create_model("fvit_tiny", num_tokens=49, patch_size=16, landmark_cnn_width=0.25)
    write_weights(str(tmp_path / "fvit.safetensors"), fvit.state())
    settings = [*STUDENT, *SHORT, f"start.transformer={tmp_path}/fvit.safetensors"]
    with pytest.raises(CheckpointError) as caught:
        check_run(tiny(tmp_path, face_set_path, *settings, kind=FinetuneConfig))
    assert "set model.student=null, model.size=tiny" in caught.value.fix


def test_unknown_student__is_refused_before_the_run(tmp_path: Path, face_set_path: str) -> None:
    """A misspelt name is found when the inputs are checked, in both kinds of run."""
    for kind in (None, FinetuneConfig):
        settings = ["model.size=base", "model.student=timm/vit_tinny_patch16_224"]
        config = tiny(tmp_path, face_set_path, *settings, **({} if kind is None else {"kind": kind}))
        with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
            check_run(config)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ViT as timm distributes them, for images of 160 pixels and with a classifier."""
    path = tmp_path_factory.mktemp("timm") / "test_vit.safetensors"
    torch.manual_seed(9)
    save_file(import_timm().create_model("test_vit", img_size=160, num_classes=5).state_dict(), path)
    return path


def test_pretraining__from_timms_weights(timm_file: Path, tmp_path: Path, face_set_path: str) -> None:
    """Student and teacher have timm's blocks; the report says what became of every part."""
    start = [*STUDENT, *SHORT, f"start.student={timm_file}", "landmarks.source=template"]
    inputs = check_run(tiny(tmp_path, face_set_path, *start))
    own = {line.split(f"{timm_file}: ")[1] for line in inputs.init_weights.report if str(timm_file) in line}
    assert own == {
        "78 tensors taken from timm's",
        "patch embedding taken",
        "positions sampled at the landmarks, from 10 x 10 cells",
        "head starts from scratch",
    }
    task = build_training(inputs.config, inputs.sampler, None, inputs.init_weights, torch.device("cpu")).task
    assert isinstance(task, Lafs)
    theirs = load_file(timm_file)
    for network in (task.trainable, task.teacher):
        state = network.backbone.state_dict()
        assert torch.equal(state["transformer.layers.3.attn.qkv.weight"], theirs["blocks.3.attn.qkv.weight"])
        assert torch.equal(state["mlp_head.0.weight"], theirs["norm.weight"])
    run(tiny(tmp_path, face_set_path, *start))


def test_finetuning__from_timms_weights(timm_file: Path, tmp_path: Path, face_set_path: str) -> None:
    """Likewise; at a CNN's landmarks positions are new, by the run's seed."""
    start = [*STUDENT, *SHORT, f"start.transformer={timm_file}", "start.landmarks=untrained"]
    found = [
        check_run(tiny(tmp_path, face_set_path, *start, f"run.seed={seed}", kind=FinetuneConfig)).init_weights
        for seed in (1, 1, 2)
    ]
    assert any("positions start new" in line for line in found[0].report)
    assert found[0].transformer_hash == found[1].transformer_hash != found[2].transformer_hash


def test_timms_weights__where_they_do_not_fit(timm_file: Path, tmp_path: Path, face_set_path: str) -> None:
    """Without model.student, or for another student, one message says which setting to change."""
    for settings, fix in (
        ([], "set model.student=timm/<the model's name>"),
        (["model.size=base", "model.student=timm/vit_tiny_patch16_224"], "weights of timm/vit_tiny_patch16_224"),
    ):
        common = [*SHORT, *settings, "landmarks.source=grid"]
        for kind, start in ((PretrainConfig, "start.student"), (FinetuneConfig, "start.transformer")):
            with pytest.raises(CheckpointError) as caught:
                check_run(tiny(tmp_path, face_set_path, *common, f"{start}={timm_file}", kind=kind))
            assert fix in caught.value.fix
            assert caught.value.subject.startswith(f"{start}={timm_file}")


def test_timms_weights__need_a_landmark_cnn_beside_them(timm_file: Path, tmp_path: Path, face_set_path: str) -> None:
    """They hold none, so the setting that names one is missing."""
    config = tiny(tmp_path, face_set_path, *STUDENT, *SHORT, f"start.student={timm_file}", "landmarks.weights=null")
    with pytest.raises(ConfigError, match="holds no landmark CNN") as caught:
        check_run(config)
    assert caught.value.subject == "landmarks.weights"
