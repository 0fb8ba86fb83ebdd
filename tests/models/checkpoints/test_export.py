"""Exported files compute what our network computes, say what goes in, and exist only if they do."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints import export
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.export import FILES, export_embedder, largest_difference, require_format
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, read_weights
from lafs_ray.models.checkpoints.state_dicts import PublishedState
from lafs_ray.models.fvit import FViTSize
from lafs_ray.models.timm_transformer import plain_vit

SIZE = FViTSize(width=24, depth=1, heads=2, head_dim=8, mlp_width=16)
ON_LANDMARKS = Architecture(49, SIZE, 16, "mobilenetv3", 0.25)
ON_GRID = Architecture(49, SIZE, 16, grid=True)
STUDENT = Architecture(49, plain_vit("test_vit").size, 16, grid=True)
ORIENTATIONS = Architecture(49, SIZE, 16, grid=True, token_features="orientations")
ENDINGS = {"torch_export": "pt2", "onnx": "onnx"}


def weights(architecture: Architecture) -> NetworkWeights:
    torch.manual_seed(3)
    parts = [architecture.build_transformer(init_std=0.02)]
    if architecture.landmark_cnn:
        parts.append(architecture.build_landmark_cnn())
    backbone = {name: value for part in parts for name, value in part.state_dict().items()}
    return NetworkWeights(architecture, PublishedState(backbone), "step-00000007.pt", step=7)


def opened(path: Path) -> tuple[Callable[[torch.Tensor], NDArray[np.float32]], dict[str, str]]:
    """An exported file as its users open it, and its description."""
    if path.suffix == ".pt2":
        files = {"lafs_ray.json": ""}
        module = torch.export.load(path, extra_files=files).module()
        return lambda images: module(images).numpy(), json.loads(files["lafs_ray.json"])
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert [node.name for node in session.get_inputs()] == ["images"]
    assert [node.name for node in session.get_outputs()] == ["embedding"]
    description = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {"images": images.numpy()})[0], description


# Tracing the landmark CNN takes 10 s and more; ONNX begins with the same trace, so once is enough.
@pytest.mark.parametrize(
    ("name", "architecture", "kind"),
    [
        ("onnx", ON_LANDMARKS, "float32"),
        ("torch_export", ON_GRID, "uint8"),
        pytest.param("onnx", STUDENT, "float32", marks=pytest.mark.long),
        pytest.param("onnx", ORIENTATIONS, "uint8", marks=pytest.mark.long),
    ],
    ids=["onnx", "torch_export", "timm", "orientations"],
)
def test_export_embedder__for_other_programs(
    tmp_path: Path, name: str, architecture: Architecture, kind: export.Input
) -> None:
    """The file embeds any number of faces as we do, and describes input and origin."""
    if name == "onnx":
        pytest.importorskip("onnxscript")
        if torch.__version__.startswith("2.6"):
            pytest.skip("torch 2.6 cannot write this network as ONNX, see the next test")
    made, path = weights(architecture), tmp_path / f"a.{ENDINGS[name]}"
    difference = export_embedder(made, str(path), name, kind=kind)
    assert difference < 1e-5
    run, description = opened(path)
    pixels = torch.randint(256, (7, 112, 112, 3), dtype=torch.uint8)
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    network = made.embedder()
    for count in (1, 7):
        with torch.inference_mode():
            expected = network(images[:count]).numpy()
        found = run(pixels[:count] if kind == "uint8" else images[:count])
        # float32 sums in another order; numbers are of size 1.
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert kind in description["input"]
    assert "RGB" in description["input"]
    assert "[-1, 1]" in description["input"]
    assert (description["color_order"], description["input_range"]) == ("rgb", "[-1, 1]")
    assert (description["source"], description["step"]) == ("step-00000007.pt", "7")


def test_export_embedder__torch_that_cannot_write_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter's failure, as with torch 2.6, is reported with torch's version."""
    pytest.importorskip("onnxscript")

    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("step 2/3 failed\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(export, "_trace", lambda module: module)
    with pytest.raises(ConfigError, match="exporter failed: step 2/3 failed\n") as caught:
        export_embedder(weights(ON_GRID), str(tmp_path / "a.onnx"), "onnx", kind="float32")
    assert torch.__version__ in caught.value.found
    assert not (tmp_path / "a.onnx").exists()


def test_export_embedder__as_weights_file(tmp_path: Path) -> None:
    """A weights file computes to the bit what the network does."""
    made, path = weights(ON_LANDMARKS), str(tmp_path / "a.safetensors")
    # The check runs faces singly too, and kernels may sum in another order than for the batch.
    assert export_embedder(made, path, "safetensors") < 1e-5
    images = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(read_weights(path).embedder()(images), made.embedder()(images))


def test_export_embedder__that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that fails the check is never there under its name."""
    made, path = weights(ON_GRID), tmp_path / "a.safetensors"
    maker = export._MAKERS["safetensors"]

    def wrong(*arguments: object) -> tuple[bytes, export.Run]:
        content, run = maker(*arguments)  # type: ignore[arg-type]
        return content, lambda images: run(images) * 1.01

    monkeypatch.setitem(export._MAKERS, "safetensors", wrong)
    with pytest.raises(CheckpointError, match=r"a.safetensors \(not written\)") as caught:
        export_embedder(made, str(path), "safetensors")
    assert caught.value.found == "embeddings that differ by 1.0e-02 of the largest value"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mistake", ["colors", "half a pixel"])
def test_largest_difference__sees_the_usual_mistakes(mistake: str) -> None:
    """Swapped colors and a shift of half a pixel are far beyond the tolerance."""
    module = export.ExportedEmbedder(weights(ON_LANDMARKS).embedder(), "float32")

    def run(images: torch.Tensor) -> torch.Tensor:
        half = (images + images.roll(1, dims=-1)) / 2
        return module(images.flip(1) if mistake == "colors" else half)

    assert largest_difference(module, run) > 20 * export.TOLERANCE
    assert largest_difference(module, module) < 1e-6


def test_export_embedder__weights_that_give_nan(tmp_path: Path) -> None:
    """Diverged weights are not exported."""
    made = weights(ON_GRID)
    made.state.backbone["cls_token"][:] = torch.nan
    with pytest.raises(CheckpointError, match="nan or infinity"):
        export_embedder(made, str(tmp_path / "a.safetensors"), "safetensors")


def test_require_format__unknown() -> None:
    """The formats there are stand in the message."""
    with pytest.raises(ConfigError, match="'onxx'") as caught:
        require_format("onxx")
    assert all(name in caught.value.expected for name in FILES)


def test_require_format__without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package is not installed, the extra that brings it is named."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ConfigError, match="no package onnxscript") as caught:
        require_format("onnx")
    assert "pip install 'lafs-ray[export]'" in caught.value.fix
    require_format("torch_export")
