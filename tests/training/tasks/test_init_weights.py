from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import reading
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.methods.supervised import Supervised
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.tasks.build import build_training, frozen_landmark_network
from lafs_ray.training.tasks.init_weights import (
    Arrays,
    InitWeights,
    as_tensors,
    load_init_weights,
    read_pretrained,
    transpose_patch_embedding,
)
from lafs_ray.training.tasks.networks import build_landmark_network
from tests.training.builds import CPU, SAMPLER, finetune, pretrain
from tests.training.faces import run, tiny


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Folder of a short stage-1 run."""
    folder = tmp_path_factory.mktemp("stage1")
    run(tiny(folder, face_set_path, "duration=2 steps", kind=FinetuneConfig))
    return folder / "part_fvit"


def weights_config(weights: Path | str, folder: Path | str, data: str, *more: str) -> Any:
    return tiny(folder, data, f"landmarks.weights={weights}", *more)


def as_published(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(first: Arrays | None, second: Arrays | None) -> bool:
    assert first is not None
    assert second is not None
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


def load_landmark_weights(config: Any) -> Arrays | None:
    return load_init_weights(config).landmarks


def test_landmark_weights__from_every_kind_of_file(
    tmp_path: Path, face_set_path: str, stage_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folder, its checkpoint, a URI, a pretraining run and published names: same landmarks."""
    folder_config = weights_config(stage_one, tmp_path / "run", face_set_path, "duration=2 steps")
    expected = load_landmark_weights(folder_config)
    untrained = load_landmark_weights(weights_config("untrained", tmp_path, face_set_path))
    assert expected is not None
    assert not same(expected, untrained)
    run(folder_config)
    network = build_landmark_network(folder_config)
    network.load_state_dict(as_tensors(expected))
    flat = dict(network.state_dict())
    assert all(name.startswith(("stn.", "output_layer.")) for name in flat)
    other = {"pos_embedding": torch.zeros(3), "loss.weight": torch.zeros(4, 3)}
    published = {
        "flat.pth": {**flat, **other},
        "ddp.pth": as_published({**flat, **other}, "module."),
        "nested.pth": {"state_dict": as_published(flat, "module."), "epoch": 3},
    }
    for name, content in published.items():
        torch.save(content, tmp_path / name)
    sources: list[Any] = [
        stage_one / "checkpoints" / "step-00000002.pt",
        stage_one.as_uri(),
        tmp_path / "run" / "debug",
        tmp_path / "run" / "debug" / "checkpoints" / "step-00000002.pt",
        *(tmp_path / name for name in published),
    ]
    for source in sources:
        found = load_landmark_weights(weights_config(source, tmp_path, face_set_path))
        assert same(expected, found), source
    # As from an object store, whose files have no path here.
    monkeypatch.setattr(reading, "local_path", lambda _: None)
    config = weights_config(stage_one.as_uri(), tmp_path, face_set_path)
    assert same(expected, load_landmark_weights(config))


def test_landmark_weights__give_the_same_landmarks(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """The frozen CNN of a pretraining run finds what stage 1's finds, in eval mode, bit by bit."""
    inputs = prepare_run(weights_config(stage_one, tmp_path, face_set_path))
    assert isinstance(inputs.config, PretrainConfig)
    frozen = frozen_landmark_network(inputs.config, inputs.init_weights)
    assert frozen is not None
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    stage = build_landmark_network(inputs.config)
    stage.load_state_dict(read_pretrained("x", str(stage_one)).landmarks)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(frozen(images), stage.eval()(images))


@pytest.mark.parametrize(
    "change", ["model.landmark_cnn_width=0.5", "model.num_landmarks=36"], ids=["width", "landmarks"]
)
def test_landmark_weights__of_another_size(tmp_path: Path, face_set_path: str, stage_one: Path, change: str) -> None:
    """Another width or number of landmarks is refused, with file, name and both shapes."""
    with pytest.raises(CheckpointError, match="in the checkpoint, .* in the model") as raised:
        load_landmark_weights(weights_config(stage_one, tmp_path, face_set_path, change))
    assert str(stage_one) in str(raised.value)


def test_landmark_weights__grid_has_none() -> None:
    """On grid patches there is no landmark CNN, and no weights are needed."""
    config = pretrain("landmarks.source=grid", "landmarks.weights=null")
    assert load_landmark_weights(config) is None


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, face_set_path: str, stage_one: Path) -> Path:
    """Folder of a short LAFS run on the stage-1 landmarks."""
    folder = tmp_path_factory.mktemp("stage2")
    short = ["duration=1 steps", "optim.warmup=0 steps"]
    run(weights_config(stage_one, folder, face_set_path, *short))
    return folder / "debug"


@pytest.fixture(scope="module")
def on_grid(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Folder of a short DINO-face run."""
    folder = tmp_path_factory.mktemp("grid")
    grid = ["landmarks.source=grid", "landmarks.weights=null"]
    run(tiny(folder, face_set_path, *grid, "duration=1 steps", "optim.warmup=0 steps"))
    return folder / "debug"


def teacher_of(folder: Path) -> dict[str, Tensor]:
    """The teacher's transformer, read without the code under test."""
    content = torch.load(folder / "checkpoints" / "step-00000001.pt", weights_only=True)
    return {
        name.removeprefix("backbone."): tensor
        for name, tensor in content["method"]["teacher"].items()
        if name.startswith("backbone.")
    }


def holds(arrays: Arrays | None, tensors: dict[str, Tensor]) -> bool:
    return same(arrays, {name: tensor.numpy() for name, tensor in tensors.items()})


def test_start__teacher_and_landmarks_of_a_pretraining_run(pretrained: Path, stage_one: Path) -> None:
    """Finetuning begins with the teacher's transformer and the landmark CNN it was trained on."""
    config = finetune(f"start.transformer={pretrained}", "regularizer.strength=1")
    start = load_init_weights(config)
    assert holds(start.transformer, teacher_of(pretrained))
    frozen = load_landmark_weights(finetune(f"start.landmarks={stage_one}"))
    assert same(start.landmarks, frozen)
    method = build_training(config, SAMPLER, 12, start, CPU).task
    assert isinstance(method, Supervised)
    network = method.trainable.model.state_dict()
    for arrays in (start.transformer, start.landmarks):
        assert arrays is not None
        for name, array in arrays.items():
            assert np.array_equal(network[name].numpy(), array), name
    assert network.keys() == (start.transformer or {}).keys() | (start.landmarks or {}).keys()
    assert method.anchor is not None
    assert holds(start.landmarks, method.anchor.state_dict())


def test_start__given_landmarks_come_first(pretrained: Path, tmp_path: Path) -> None:
    """start.landmarks replaces the run's own; `untrained` initializes; alone it is enough."""
    other = build_landmark_network(finetune())
    torch.save(other.state_dict(), tmp_path / "other.pt")
    both = [f"start.transformer={pretrained}", f"start.landmarks={tmp_path / 'other.pt'}"]
    assert holds(load_init_weights(finetune(*both)).landmarks, other.state_dict())
    alone = load_init_weights(finetune(both[1]))
    assert holds(alone.landmarks, other.state_dict())
    assert (alone.transformer, alone.transformer_hash) == (None, None)
    assert load_init_weights(finetune(both[0], "start.landmarks=untrained")).landmarks is None
    assert load_init_weights(finetune()) == InitWeights()


def test_start__published_pretraining_checkpoint(pretrained: Path, tmp_path: Path) -> None:
    """A published file gives its teacher, not its student; its landmark CNN has to be named."""
    teacher = teacher_of(pretrained)
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    path = tmp_path / "published.pth"
    torch.save(
        {
            "student": as_published(student, "module.backbone."),
            "teacher": as_published(teacher, "backbone."),
            "epoch": 40,
        },
        path,
    )
    start = load_init_weights(finetune(f"start.transformer={path}", "start.landmarks=untrained"))
    assert holds(start.transformer, teacher)
    with pytest.raises(ConfigError) as raised:
        load_init_weights(finetune(f"start.transformer={path}"))
    assert raised.value.subject == "start.landmarks"
    assert f"{path} holds no landmark CNN" in raised.value.found
    assert "landmarks.source=grid" in raised.value.fix


def test_start__weights_file(pretrained: Path, on_grid: Path, stage_one: Path, tmp_path: Path) -> None:
    """A described weights file starts a run as its checkpoint does, over landmarks and the grid."""
    for folder in (pretrained, on_grid):
        write_weights(str(tmp_path / f"{folder.parent.name}.safetensors"), load_for_inference(str(folder)))
    of_lafs, of_grid = (tmp_path / f"{f.parent.name}.safetensors" for f in (pretrained, on_grid))
    ours = load_init_weights(finetune(f"start.transformer={of_lafs}"))
    theirs = load_init_weights(finetune(f"start.transformer={pretrained}"))
    assert (ours.transformer_hash, ours.landmarks_hash) == (theirs.transformer_hash, theirs.landmarks_hash)
    landmarks = f"start.landmarks={stage_one}"
    turned = load_init_weights(finetune(f"start.transformer={of_grid}", landmarks))
    expected = load_init_weights(finetune(f"start.transformer={on_grid}", landmarks))
    assert turned.transformer_hash == expected.transformer_hash
    with pytest.raises(CheckpointError, match=r"model\.num_landmarks=49"):
        load_init_weights(finetune(f"start.transformer={of_lafs}", "model.num_landmarks=36"))


def test_start__finetuned_run(stage_one: Path) -> None:
    """A supervised run's own network can be the start of another, without its classes."""
    start = load_init_weights(finetune(f"start.transformer={stage_one}"))
    content = torch.load(stage_one / "checkpoints" / "step-00000002.pt", weights_only=True)
    network = {
        name.removeprefix("model."): tensor for name, tensor in content["model"].items() if name.startswith("model.")
    }
    assert {**(start.transformer or {}), **(start.landmarks or {})}.keys() == network.keys()
    assert (start.transformer or {})["cls_token"].tolist() == network["cls_token"].tolist()


def test_start__grid_run_needs_landmarks_or_the_grid(on_grid: Path, stage_one: Path) -> None:
    """A DINO-face run is finetuned on the grid as it is, or at landmarks that are named."""
    run_itself = f"start.transformer={on_grid}"
    with pytest.raises(ConfigError, match="was pretrained on grid patches"):
        load_init_weights(finetune(run_itself))
    grid = load_init_weights(finetune(run_itself, "landmarks.source=grid"))
    assert holds(grid.transformer, teacher_of(on_grid))
    assert grid.landmarks is None
    landmarks = load_init_weights(finetune(run_itself, f"start.landmarks={stage_one}"))
    assert landmarks.landmarks is not None
    ours, theirs = landmarks.transformer or {}, grid.transformer or {}
    weight = "patch_to_embedding.weight"
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs if n != weight)
    turned = transpose_patch_embedding(torch.from_numpy(theirs[weight]), 16)
    assert np.array_equal(ours[weight], turned.numpy())
    assert not np.array_equal(ours[weight], theirs[weight])


def test_transpose_patch_embedding__embed_transpose_patch_embedding_as_before() -> None:
    """The turned weight gives a patch cut along x first the embedding of that along y first."""
    generator = torch.Generator().manual_seed(0)
    weight, patch = (torch.randn(5, 48, generator=generator) for _ in range(2))
    along_x = patch.reshape(5, 4, 4, 3).transpose(1, 2).reshape(5, 48)
    # float32 sums of 48 products in another order.
    torch.testing.assert_close(along_x @ transpose_patch_embedding(weight, 4).T, patch @ weight.T)
    assert torch.equal(transpose_patch_embedding(transpose_patch_embedding(weight, 4), 4), weight)


@pytest.mark.parametrize(
    ("change", "key", "shapes", "setting"),
    [
        ("model.size=small", "cls_token", "[1, 1, 128] in the checkpoint, [1, 1, 384] in the model", "model.size=tiny"),
        (
            "model.num_landmarks=36",
            "pos_embedding",
            "[1, 50, 128] in the checkpoint, [1, 37, 128] in the model",
            "model.num_landmarks=49",
        ),
        (
            "model.patch_size=8",
            "patch_to_embedding.weight",
            "[128, 768] in the checkpoint, [128, 192] in the model",
            "model.patch_size=16",
        ),
    ],
)
def test_start__another_architecture(pretrained: Path, change: str, key: str, shapes: str, setting: str) -> None:
    """Another size is refused with file, name, both shapes and the setting that would fit."""
    with pytest.raises(CheckpointError) as raised:
        load_init_weights(finetune(f"start.transformer={pretrained}", change))
    assert raised.value.subject.startswith(f"start.transformer={pretrained}")
    assert f"{key}: {shapes}" in raised.value.found
    assert setting in raised.value.fix


@pytest.mark.parametrize("part", ["transformer", "landmarks"])
def test_start__other_weights_when_continued(tmp_path: Path, face_set_path: str, pretrained: Path, part: str) -> None:
    """A run cannot continue from a start whose file holds other weights now."""
    path = tmp_path / "start.pt"
    source = teacher_of(pretrained) if part == "transformer" else {}
    if part == "landmarks":
        source = dict(build_landmark_network(finetune()).state_dict())
    torch.save(source, path)
    more = ["start.landmarks=untrained"] if part == "transformer" else []
    config = tiny(tmp_path, face_set_path, f"start.{part}={path}", *more, kind=FinetuneConfig)
    prepare_run(config)
    prepare_run(config)
    name = next(name for name in source if source[name].is_floating_point())
    torch.save({**source, name: source[name] + 1}, path)
    with pytest.raises(ConfigError, match=rf"start\.{part}: the file holds other weights now"):
        prepare_run(config)
