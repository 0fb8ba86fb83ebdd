"""A weights file says what it is; one that does not is refused with what to do."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, read_weights, write_weights
from lafs_ray.models.checkpoints.state_dicts import PublishedState, hash_tensors
from lafs_ray.models.fvit import FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN, infer_width

ARCHITECTURE = Architecture(49, FViTSize(16, 1, 2, 8, 12), 16, "mobilenetv3", 0.25)


def weights(architecture: Architecture = ARCHITECTURE) -> NetworkWeights:
    torch.manual_seed(1)
    parts = [architecture.build_transformer()]
    if architecture.landmark_cnn:
        parts.append(architecture.build_landmark_cnn())
    backbone = {name: value for part in parts for name, value in part.state_dict().items()}
    return NetworkWeights(architecture, PublishedState(backbone), "step-00000007.pt", step=7)


def test_write_weights__header_says_what_goes_in(tmp_path: Path) -> None:
    """Range, color order, side and architecture stand in the header for any reader."""
    made = weights()
    write_weights(str(tmp_path / "a.safetensors"), made)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = file.metadata()
        names = set(file.keys())
    assert names == made.state.backbone.keys()
    assert header["input_range"] == "[-1, 1]"
    assert header["color_order"] == "rgb"
    assert (header["image_size"], header["patch_size"], header["embedding_dim"]) == ("112", "16", "16")
    assert (header["source"], header["step"]) == ("step-00000007.pt", "7")
    assert header["weights_hash"] == hash_tensors(made.state.backbone)
    assert json.loads(header["architecture"])["transformer"]["head_dim"] == 8


def test_read_weights__embeds_as_before(tmp_path: Path) -> None:
    """Description and tensors come back; the network computes the same, from a URI as well."""
    made = weights()
    write_weights(str(tmp_path / "a.safetensors"), made)
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    for uri in (str(tmp_path / "a.safetensors"), (tmp_path / "a.safetensors").as_uri()):
        again = read_weights(uri)
        assert again is not None
        assert again.architecture == ARCHITECTURE
        assert (again.source, again.step) == (made.source, 7)
        with torch.inference_mode():
            assert torch.equal(again.embedder()(images), made.embedder()(images))


def test_embedder__untrained(tmp_path: Path) -> None:
    """For comparison: another transformer on the same landmarks."""
    made = weights()
    trained, untrained = made.embedder(), made.embedder(trained=False)
    images = torch.rand(1, 3, 112, 112)
    assert torch.equal(trained.landmark_cnn(images), untrained.landmark_cnn(images))
    assert not torch.equal(trained.transformer.cls_token, untrained.transformer.cls_token)


def test_read_weights__without_description(tmp_path: Path) -> None:
    """Plain safetensors, other files and missing ones are no weights files."""
    path = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    for uri in (path, tmp_path / "none.safetensors", __file__):
        assert read_weights(str(uri)) is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"lafs_ray_weights": "2"}, "format '2' in its header"),
        ({"architecture": "{}"}, "an invalid header"),
        ({"architecture": '{"num_tokens": "many"}'}, "an invalid header"),
        ({"published_layout": "no json"}, "an invalid header"),
    ],
)
def test_read_weights__unusable_header(tmp_path: Path, changes: dict[str, str], found: str) -> None:
    """A newer format and a header edited by hand are refused."""
    write_weights(str(tmp_path / "a.safetensors"), weights())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = {**file.metadata(), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "b.safetensors", header)
    with pytest.raises(CheckpointError, match="b.safetensors") as caught:
        read_weights(str(tmp_path / "b.safetensors"))
    assert found in caught.value.found


@pytest.mark.parametrize("cut", [0, 5, 100, 5000])
def test_read_weights__truncated(tmp_path: Path, cut: int) -> None:
    """A truncated file is reported with its size."""
    path = tmp_path / "a.safetensors"
    write_weights(str(path), weights())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError) as caught:
        read_weights(str(path))
    assert f"{cut:,} bytes" in caught.value.found


def test_embedder__tensors_of_another_architecture(tmp_path: Path) -> None:
    """A header that does not match its tensors is refused with both shapes."""
    other = NetworkWeights(Architecture(49, FViTSize(16, 1, 2, 8, 99), 16, "mobilenetv3", 0.25), weights().state, "a")
    with pytest.raises(CheckpointError, match=r"\[12, 16\] in the checkpoint, \[99, 16\]"):
        other.embedder()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"depth": 0}, "depth 0"),
        ({"depth": 100_000}, "depth 100000"),
        ({"head_dim": -64}, "head_dim -64"),
        ({"heads": 0}, "heads 0"),
        ({"width": 1 << 40}, "width 1099511627776"),
        ({"mlp_width": 1 << 17}, "tensors do not match"),
        ({"depth": 500, "width": 1 << 15}, "tensors do not match"),
        ({"num_tokens": 0}, "num_tokens 0"),
        ({"num_tokens": 1 << 50}, "num_tokens 1125899906842624"),
        ({"patch_size": 1 << 20}, "patch_size 1048576"),
        ({"landmark_cnn_width": 1e9}, "landmark_cnn_width 1000000000.0"),
        ({"landmark_cnn_width": math.nan}, "landmark_cnn_width nan"),
    ],
)
def test_read_weights__sizes_that_are_not_of_the_tensors(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    """A header with impossible sizes, or those of a larger network, is refused before that network is built."""
    sound = weights()
    assert sound.architecture.transformer is not None
    sizes = vars(sound.architecture.transformer)
    inner = FViTSize(**{name: change.get(name, value) for name, value in sizes.items()})
    outer = {name: value for name, value in change.items() if name not in sizes}
    other = replace(sound, architecture=replace(sound.architecture, transformer=inner, **outer))
    write_weights(str(tmp_path / "a.safetensors"), other)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=re.escape(found)):
        read_weights(str(tmp_path / "a.safetensors"))
    # Building only the largest on the device meta takes 3 s; with memory it could not be built.
    assert time.process_time() - begin < 30


@pytest.mark.parametrize("width", [0.1, 0.25, 1 / 3, 0.35, 0.5, 0.75, 1.0, 1.3, 2.0])
def test_infer_width__gives_the_same_network(width: float) -> None:
    """The width inferred from shapes builds a CNN of the same shapes."""
    with torch.device("meta"):
        state = LandmarkCNN(9, width=width).state_dict()
        found = infer_width(state)
        assert found is not None
        again = LandmarkCNN(9, width=found).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in again.items()}
