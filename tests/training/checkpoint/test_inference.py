"""One network out of a run's folder, its checkpoint, and the weights file made of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import convert, inference_device, load_embedder, load_for_inference
from tests.models.published import pretraining
from tests.training.faces import run, tiny

KINDS: dict[str, tuple[type[Any], list[str]]] = {
    "supervised": (FinetuneConfig, ["run.name=net", "duration=1 steps", "optim.warmup=0 steps"]),
    "landmarks": (
        PretrainConfig,
        [
            "run.name=net",
            "duration=1 steps",
            "optim.warmup=0 steps",
            "landmarks.source=per_view",
            "landmarks.weights=untrained",
        ],
    ),
    "template": (
        PretrainConfig,
        ["run.name=net", "duration=1 steps", "optim.warmup=0 steps", "landmarks.source=template"],
    ),
    "grid": (PretrainConfig, ["run.name=net", "duration=1 steps", "optim.warmup=0 steps", "landmarks.source=grid"]),
}


@pytest.fixture(scope="module", params=KINDS)
def trained_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """The folder of a run of one step."""
    kind, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    run(tiny(folder, face_set_path, *settings, kind=kind))
    return folder / "net"


def embeddings(network: torch.nn.Module) -> torch.Tensor:
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        return network(images)


def test_load_embedder__from_every_kind_of_file(trained_run: Path, tmp_path: Path) -> None:
    """Folder, checkpoint and weights file give one network to the bit, unlike untrained ones."""
    checkpoint = trained_run / "checkpoints" / "step-00000001.pt"
    conversion = convert(str(trained_run))
    write_weights(str(tmp_path / "a.safetensors"), conversion.weights)
    first = embeddings(load_embedder(str(trained_run)))
    assert first.isfinite().all()
    for path in (checkpoint, tmp_path / "a.safetensors"):
        assert torch.equal(embeddings(load_embedder(str(path))), first)
        assert not torch.equal(embeddings(load_embedder(str(path), trained=False)), first)
    again = load_for_inference(str(tmp_path / "a.safetensors"))
    assert again.step == 1
    assert str(checkpoint) in again.source
    assert again.architecture == load_for_inference(str(checkpoint)).architecture


def test_convert__run_to_published_and_back(trained_run: Path, tmp_path: Path) -> None:
    """A run's network under published names is read again as the same network, heads included."""
    made = convert(str(trained_run), heads=True).weights
    left_out = write_published(str(tmp_path / "a.pth"), made)
    architecture = made.architecture
    size = architecture.transformer
    assert size is not None
    again = convert(
        str(tmp_path / "a.pth"),
        head_dim=size.head_dim,
        heads=True,
        grid=architecture.grid,
        landmarks=str(trained_run) if left_out else None,
    ).weights
    assert again.architecture == architecture
    assert torch.equal(embeddings(again.embedder()), embeddings(made.embedder()))
    for part in ("head", "loss"):
        ours, theirs = getattr(made.state, part), getattr(again.state, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert made.state.head or made.state.loss


def test_convert__student_of_a_run(trained_run: Path) -> None:
    """The role chooses the network of a pretraining run; a supervised one has only one."""
    teacher, student = (convert(str(trained_run), role=role) for role in ("teacher", "student"))
    same = torch.equal(embeddings(teacher.weights.embedder()), embeddings(student.weights.embedder()))
    assert same == (teacher.weights.layout.container is None)


def test_load_for_inference__published_checkpoint(tmp_path: Path) -> None:
    """A published file is not guessed at: the message is the command that converts it."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"teacher": pretraining(), "epoch": 1}, path)
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        load_embedder(str(path))
    assert "keys teacher, epoch" in caught.value.found
    assert f"lafs convert {path}" in caught.value.fix


class _Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("read", [load_embedder, convert])
def test_load_for_inference__file_with_code_in_it(tmp_path: Path, read: Any) -> None:
    """Nothing in a file runs, whichever function opens it."""
    torch.save({"format": 1, "kind": _Code(tmp_path / "made"), "config": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="mkdir"):
        read(str(tmp_path / "a.pt"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("read", [load_embedder, convert])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_load_for_inference__missing_file(tmp_path: Path, read: Any, ending: str) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(CheckpointError, match=rf"none\.{ending}") as caught:
        read(str(tmp_path / f"none.{ending}"))
    assert caught.value.found == "no such file"


def test_load_for_inference__newer_format(tmp_path: Path) -> None:
    """A checkpoint of a later version is refused by its number."""
    torch.save({"format": 9, "kind": "PretrainConfig", "config": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="format 9"):
        load_embedder(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_inference_device__that_is_not_there(name: str) -> None:
    """A device that torch does not have is named, without a traceback."""
    with pytest.raises(ConfigError, match=f"device {name}"):
        inference_device(name)
    assert inference_device("cpu").type == "cpu"
