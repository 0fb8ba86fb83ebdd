"""Weights that travel: embeddings stay equal, and the architecture comes back, through every format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lafs_ray
from lafs_ray.api.face_model import FaceModel
from lafs_ray.cli.commands import execute
from lafs_ray.compat import import_timm
from lafs_ray.errors import CheckpointError, UserError
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.models.checkpoints.hub_folder import Card
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.models.checkpoints.timm_names import to_timm
from lafs_ray.synthetic.datasets import contact_sheet

FACES = contact_sheet(0, range(3), 1).reshape(3, 112, 112, 3)
# Sums in another order give 1e-6; heads of another width 0.4.
TOLERANCE = 1e-5
FVITS = ("fvit_tiny", "fvit_small", pytest.param("fvit_base", marks=pytest.mark.long))
# A small one; and one with layer scale and without a position of the class token.
SIZES = (*FVITS, "timm/test_vit", pytest.param("timm/deit3_small_patch16_224", marks=pytest.mark.long))
SMALL = {"num_tokens": 16, "patch_size": 8, "landmark_cnn_width": 0.25}


def model_of(name: str, **changes: object) -> FaceModel:
    return lafs_ray.create_model(name, seed=3, **{**SMALL, **changes})


def assert_same(found: FaceModel, model: FaceModel) -> None:
    assert found.architecture == model.architecture
    np.testing.assert_allclose(found.embed(FACES), model.embed(FACES), atol=TOLERANCE)


@pytest.mark.parametrize("name", SIZES)
def test_hub_folder__and_back(name: str, tmp_path: Path) -> None:
    """A saved folder has the three files; the mixin and `load` read it; its description is in both files."""
    model = model_of(name)
    card = Card(license="mit", data="500 synthetic faces", metrics={"LFW accuracy": 0.75})
    model.save_pretrained(tmp_path, card=card)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same(lafs_ray.load(tmp_path), model)
    assert_same(FaceModel.from_pretrained(tmp_path), model)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: lafs_ray\n")
    assert all(part in text for part in ("license: mit", "500 synthetic faces", "LFW accuracy: 0.7500", "@inproceed"))


def test_hub_folder__rewritten_without_a_header(tmp_path: Path) -> None:
    """Another program may drop the header of the weights: config.json then has the architecture."""
    model = model_of("fvit_tiny")
    model.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert_same(lafs_ray.load(tmp_path), model)


def test_hub_folder__two_descriptions_that_differ(tmp_path: Path) -> None:
    """A config.json of another network is refused, not believed."""
    model_of("fvit_tiny").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"]["transformer"] |= {"heads": 2, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="2 × 64"):
        lafs_ray.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"width": 128}, r"width=128[\s\S]*width=64.*timm has under this name"),
        ({"timm": "hf-hub:someone/model"}, "does not have"),
        ({"timm": None, "heads": 4, "head_dim": 16}, "tensors do not match"),
    ],
)
def test_hub_folder__of_a_timm_student_with_another_description(
    tmp_path: Path, change: dict[str, object], found: str
) -> None:
    """A name that timm does not have, sizes that are not the name's, and the fViT instead: one error, no download."""
    model_of("timm/test_vit").save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"]["transformer"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=found):
        lafs_ray.load(tmp_path)


@pytest.mark.parametrize("name", FVITS)
@pytest.mark.parametrize("recorded", [True, False])
def test_published__and_back(name: str, recorded: bool, tmp_path: Path) -> None:
    """Heads travel in a .pth; where another program dropped them, shapes of our sizes give them."""
    model, path = model_of(name), tmp_path / "a.pth"
    write_published(str(path), model.state())
    if not recorded:
        torch.save(dict(torch.load(path, weights_only=True)), path)
    assert_same(lafs_ray.load(path), model)


def test_published__of_a_timm_student(tmp_path: Path) -> None:
    """Published checkpoints have no names for timm's blocks: one message says so, and nothing is written."""
    with pytest.raises(CheckpointError, match=r"a transformer of timm/test_vit[\s\S]*OUT\.safetensors"):
        write_published(str(tmp_path / "a.pth"), model_of("timm/test_vit").state())
    assert not list(tmp_path.iterdir())


def test_published__heads_of_no_known_size(tmp_path: Path) -> None:
    """Recorded heads are used for any shape, and a released module loads the file strictly."""
    model = model_of("fvit_tiny")
    size = replace(model.architecture.transformer, mlp_width=256, depth=1, heads=8, head_dim=16)
    architecture = replace(model.architecture, transformer=size)
    backbone = {n: t for n, t in model.state().state.backbone.items() if "layers.1." not in n}
    weights = replace(model.state(), architecture=architecture)
    weights.state.backbone.clear()
    weights.state.backbone.update(backbone)
    write_published(str(tmp_path / "a.pth"), weights)
    assert lafs_ray.load(tmp_path / "a.pth").architecture == architecture
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    architecture.build_transformer().load_state_dict(
        {n: t for n, t in state.items() if not n.startswith(("stn.", "output_layer."))}, strict=True
    )


@pytest.mark.parametrize("name", SIZES)
def test_timm_file__and_back(name: str, tmp_path: Path) -> None:
    """A file under timm's names is a weights file as well."""
    model = model_of(name)
    write_weights(str(tmp_path / "a.safetensors"), model.state())
    execute("export", [str(tmp_path / "a.safetensors"), str(tmp_path), "--formats", "timm,huggingface"])
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "embedder_timm.safetensors")
    assert_same(lafs_ray.load(tmp_path / "embedder_timm.safetensors"), model)
    assert_same(lafs_ray.load(tmp_path / "huggingface"), model)


@pytest.mark.parametrize("name", ["fvit_tiny", "fvit_small"])
def test_timm_names__load_into_timm(name: str) -> None:
    """timm's own VisionTransformer computes the embeddings of a grid network from these tensors."""
    model = lafs_ray.create_model(name, seed=1, num_tokens=49, patch_size=16, landmark_cnn=None)
    size = model.architecture.transformer
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        112,
        16,
        num_classes=0,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.mlp_width / size.width,
        qkv_bias=False,
        norm_layer=torch.nn.LayerNorm,
    ).eval()
    network.load_state_dict(to_timm(model.state().state.backbone, model.architecture), strict=True)
    pixels = torch.from_numpy(FACES).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), model(pixels), atol=TOLERANCE, rtol=0)


@pytest.mark.long  # an export traces the network twice; tests/models/checkpoints has a small one
@pytest.mark.parametrize("name", SIZES)
def test_onnx__gives_the_embeddings(name: str, tmp_path: Path) -> None:
    """onnxruntime computes the same embeddings from the exported file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of(name)
    write_weights(str(tmp_path / "a.safetensors"), model.state())
    execute("export", [str(tmp_path / "a.safetensors"), str(tmp_path), "--formats", "onnx", "--input", "uint8"])
    session = onnxruntime.InferenceSession(str(tmp_path / "embedder.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": FACES})[0]
    expected = model.embed(FACES, flip=False, normalized=False)
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=TOLERANCE)
