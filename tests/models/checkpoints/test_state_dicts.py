"""Published names, there and back; strict loading names each misfit; nothing executes on load."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lafs_ray.errors import CheckpointError
from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.models.checkpoints.state_dicts import (
    LAYOUTS,
    PublishedState,
    load_weights,
    published_state,
    read_checkpoint,
)
from lafs_ray.models.fvit import FVIT_SIZES, FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.part_fvit import PartFViT
from tests.golden_cases import ROOT


def _published(model: str, prefix: str = "") -> dict[str, Tensor]:
    """Tensors without memory in the names and shapes of a recorded full-size model."""
    keys = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())[model]["keys"]
    return {prefix + name: torch.empty(shape, device="meta") for name, shape, *_ in keys}


def _names_and_shapes(state: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    return sorted((name, value.shape) for name, value in state.items())


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_published_state__pretraining_checkpoint_and_back(role: Literal["teacher", "student"]) -> None:
    """A full-size student or teacher fits our modules and regains exactly the same names."""
    wrap = "module." if role == "student" else ""
    flat = _published("backbone_with_land_false", f"{wrap}backbone.")
    flat |= _published("dino_head_768_100000_student", f"{wrap}head.")
    other = {"student": "teacher", "teacher": "student"}[role]
    checkpoint = {role: flat, other: {"wrong": torch.zeros(1)}, "epoch": 41}
    state = published_state(checkpoint, role)
    with torch.device("meta"):
        backbone, head = FViT(FVIT_SIZES["base"]), DINOHead(768, 100_000)
    for module, part in ((backbone, state.backbone), (head, state.head)):
        load_weights(module, part)
        assert part.keys() == module.state_dict().keys()
    assert list(state.loss) == ["weight"]
    ours = PublishedState(backbone.state_dict(), head.state_dict(), state.loss)
    assert _names_and_shapes(LAYOUTS[role].named(ours)) == _names_and_shapes(flat)


def test_published_state__first_and_last_names() -> None:
    """The recorded names at both ends of a published teacher are those we write."""
    keys = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())
    recorded = keys["student_multicrop_keys_first_last"]
    with torch.device("meta"):
        state = PublishedState(
            FViT(FVIT_SIZES["base"]).state_dict(), DINOHead(768, 100_000).state_dict(), {"weight": torch.empty(10, 768)}
        )
    ours = list(LAYOUTS["teacher"].named(state))
    assert ours[:4] == recorded["first"]
    assert ours[-4:] == recorded["last"]
    assert len(ours) == recorded["n_keys"]


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
def test_published_state__finetuned_checkpoint_and_back(container: str | None, prefix: str) -> None:
    """A flat Part fViT, wrapped or not, fits ours and goes back to the flat names."""
    flat = _published("backbone_with_land_true", prefix)
    state = published_state(flat if container is None else {container: flat, "epoch": 1})
    with torch.device("meta"):
        model = PartFViT(LandmarkCNN(196), FViT(FVIT_SIZES["base"]))
    load_weights(model, state.backbone)
    ours = PublishedState(backbone=model.state_dict(), loss=state.loss)
    expected = _published("backbone_with_land_true")
    assert _names_and_shapes(LAYOUTS[None].named(ours)) == _names_and_shapes(expected)


def test_published_state__landmark_cnn_alone() -> None:
    """A stage-1 checkpoint of another transformer still gives its landmark CNN."""
    state = published_state(_published("landmark_cnn_face_landmark_4simmin_glo_loc", "module."))
    with torch.device("meta"):
        cnn = LandmarkCNN(196)
    load_weights(cnn, state.backbone)
    assert "mask_token" in state.backbone


def test_published_state__no_tensors() -> None:
    """A checkpoint without a network is refused with the keys it has."""
    with pytest.raises(CheckpointError, match=r"keys epoch, optimizer") as caught:
        published_state({"optimizer": {}, "epoch": 3})
    assert "'teacher'" in caught.value.expected


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)


def test_load_weights__copies_values() -> None:
    """Values arrive, in the module's dtype; tensors of other networks are ignored."""
    torch.manual_seed(0)
    source, target = _Small().double(), _Small()
    load_weights(target, source.state_dict() | {"other.weight": torch.zeros(1)})
    for name, value in target.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, source.state_dict()[name].float())


def test_load_weights__every_mismatch_is_named() -> None:
    """The error names each tensor with both shapes; the module stays as it was."""
    target = _Small()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {"first.weight": torch.zeros(5, 3), "first.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, state | {"spare": torch.zeros(1)})
    message = str(caught.value)
    assert "3 of 4 tensors" in message
    assert "first.weight: [5, 3] in the checkpoint, [2, 3] in the model" in message
    assert "second.weight: absent from the checkpoint, [1, 2] in the model" in message
    assert "second.bias: absent" in message
    assert "spare" in message
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_read_checkpoint__what_the_reference_stores(tmp_path: Path) -> None:
    """Arguments and NumPy learning rates, which published files hold, are read."""
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {
            "teacher": {"backbone.cls_token": torch.arange(3.0)},
            "optimizer": {"param_groups": [{"lr": np.float64(0.5)}]},
            "args": argparse.Namespace(patch_size=8),
            "epoch": 41,
        },
        path,
    )
    content = read_checkpoint(path)
    assert content["teacher"]["backbone.cls_token"].tolist() == [0.0, 1.0, 2.0]
    assert content["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert content["args"].patch_size == 8


def test_read_checkpoint__safetensors(tmp_path: Path) -> None:
    """Exports are read by their ending, to the bit."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = {"weight": torch.randn(3, 2)}
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "model.safetensors")["weight"], state["weight"])


class _Code:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_read_checkpoint__code_is_not_run(tmp_path: Path, legacy: bool) -> None:
    """A file with code in it is refused by name, and the code does not run."""
    path, folder = tmp_path / "bad.pth", tmp_path / "made"
    torch.save({"a": _Code(folder)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"mkdir") as caught:
        read_checkpoint(path)
    assert caught.value.subject == str(path)
    assert not folder.exists()


def test_read_checkpoint__plain_pickle_is_not_run(tmp_path: Path) -> None:
    """A bare pickle is refused too, whatever its protocol."""
    path, folder = tmp_path / "bad.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(_Code(folder)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the protocol before it refuses
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    assert not folder.exists()


def test_read_checkpoint__pickled_module(tmp_path: Path) -> None:
    """A whole pickled network is refused with the class that would have been built."""
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "model.pth")


def _cuts(size: int) -> Iterable[int]:
    return (0, 1, 7, size // 4, size // 2, size - 30)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_read_checkpoint__truncated(tmp_path: Path, ending: str) -> None:
    """A file cut anywhere is a CheckpointError with its size, never another exception."""
    state = {"weight": torch.randn(40, 30)}
    whole = tmp_path / f"whole.{ending}"
    if ending == "pth":
        torch.save(state, whole)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, whole)
    content = whole.read_bytes()
    for cut in _cuts(len(content)):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert f"{cut:,} bytes" in caught.value.found


def test_read_checkpoint__missing_file(tmp_path: Path) -> None:
    """A path without a file is named."""
    with pytest.raises(CheckpointError, match=r"none\.pth") as caught:
        read_checkpoint(tmp_path / "none.pth")
    assert caught.value.found == "no such file"


def test_read_checkpoint__no_dictionary(tmp_path: Path) -> None:
    """A bare tensor is no checkpoint."""
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match=r"a Tensor"):
        read_checkpoint(tmp_path / "tensor.pth")


def test_base_to_disk_and_back(tmp_path: Path) -> None:
    """Weights saved under published names and loaded into a fresh model embed alike."""
    size = FViTSize(width=24, depth=1, heads=2, head_dim=8, mlp_width=16)
    torch.manual_seed(0)
    first, second = FViT(size, 9, 12).eval(), FViT(size, 9, 12).eval()
    published = LAYOUTS["student"].named(PublishedState(first.state_dict()))
    torch.save({"student": published}, tmp_path / "student.pth")
    state = published_state(read_checkpoint(tmp_path / "student.pth"), "student")
    load_weights(second, state.backbone)
    tokens = torch.randn(2, 9, 12)
    assert torch.equal(first(tokens), second(tokens))
