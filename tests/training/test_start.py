from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data import storage
from lafs_ray.errors import CheckpointError
from lafs_ray.training.build import frozen_landmark_network
from lafs_ray.training.networks import build_landmark_network
from lafs_ray.training.session import open_job
from lafs_ray.training.start import Arrays, as_tensors, load_start, read_source
from tests.training.builds import pretrain
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
    return load_start(config).landmarks


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
    monkeypatch.setattr(storage, "local_path", lambda _: None)
    config = weights_config(stage_one.as_uri(), tmp_path, face_set_path)
    assert same(expected, load_landmark_weights(config))


def test_landmark_weights__give_the_same_landmarks(
    tmp_path: Path, face_set_path: str, stage_one: Path
) -> None:
    """The frozen CNN of a pretraining run finds what stage 1's finds, in eval mode, bit by bit."""
    inputs = open_job(weights_config(stage_one, tmp_path, face_set_path))
    assert isinstance(inputs.config, PretrainConfig)
    frozen = frozen_landmark_network(inputs.config, inputs.start)
    assert frozen is not None
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    stage = build_landmark_network(inputs.config)
    stage.load_state_dict(read_source(str(stage_one)).landmarks)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(frozen(images), stage.eval()(images))


@pytest.mark.parametrize(
    "change", ["model.landmark_cnn_width=0.5", "model.num_landmarks=36"], ids=["width", "landmarks"]
)
def test_landmark_weights__of_another_size(
    tmp_path: Path, face_set_path: str, stage_one: Path, change: str
) -> None:
    """Another width or number of landmarks is refused, with file, name and both shapes."""
    with pytest.raises(CheckpointError, match="in the checkpoint, .* in the model") as raised:
        load_landmark_weights(weights_config(stage_one, tmp_path, face_set_path, change))
    assert str(stage_one) in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda path: path.write_bytes(b"no checkpoint"),
        lambda path: torch.save({"teacher": {"backbone.cls_token": torch.zeros(1)}}, path),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["missing", "damaged", "without landmarks", "without tensors"],
)
def test_landmark_weights__unusable_file(
    tmp_path: Path, face_set_path: str, make: Callable[[Path], object]
) -> None:
    """A missing, damaged or foreign file is a CheckpointError that names it."""
    make(tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as raised:
        load_landmark_weights(weights_config(tmp_path / "w.pt", tmp_path, face_set_path))
    assert str(tmp_path / "w.pt") in str(raised.value)


def test_landmark_weights__grid_has_none() -> None:
    """On grid patches there is no landmark CNN, and no weights are asked for."""
    config = pretrain("landmarks.source=grid", "landmarks.weights=null")
    assert load_landmark_weights(config) is None
