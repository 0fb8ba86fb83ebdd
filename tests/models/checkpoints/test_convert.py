"""Published checkpoints are converted and back without a change; every name is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.convert import (
    Conversion,
    add_landmark_cnn,
    from_published,
    report_conversion,
    write_published,
)
from lafs_ray.models.checkpoints.safetensors_file import read_weights, write_weights
from lafs_ray.models.checkpoints.state_dicts import read_checkpoint
from lafs_ray.models.fvit import FViTSize
from tests.golden_cases import load_case, to_unit_range
from tests.models.published import equal, pretraining, recorded, small

LANDMARK_CNN = "landmark_cnn_face_landmark_4simmin_glo_loc"
PART_FVIT = "backbone_with_land_true"


def there_and_back(checkpoint: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    """Published -> weights file -> published, through files."""
    torch.save(checkpoint, folder / "published.pth")
    content = read_checkpoint(folder / "published.pth")
    conversion = from_published(content, "published.pth", heads=True, **options)
    write_weights(str(folder / "ours.safetensors"), conversion.weights)
    again = read_weights(str(folder / "ours.safetensors"))
    assert write_published(str(folder / "back.pth"), again) == {}
    return read_checkpoint(folder / "back.pth")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_round_trip__of_a_pretraining_checkpoint(tmp_path: Path, role: Literal["teacher", "student"]) -> None:
    """Student and teacher come back under all their names, class weight and head included."""
    networks = {"student": pretraining("module.", 0), "teacher": pretraining("", 5)}
    back = there_and_back({**networks, "epoch": 41, "optimizer": {}}, tmp_path, role=role)
    assert list(back) == [role]
    assert equal(back[role], networks[role])


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
@pytest.mark.parametrize("container", [None, "state_dict"])
def test_round_trip__of_part_fvit(tmp_path: Path, prefix: str, container: str | None) -> None:
    """A finetuned network comes back with its wrapper's prefix and its place in the file."""
    flat = small(PART_FVIT, prefix)
    back = there_and_back(flat if container is None else {container: flat}, tmp_path)
    assert equal(back if container is None else back[container], flat)


def test_round_trip__keeps_dtypes(tmp_path: Path) -> None:
    """Half precision is neither widened nor rounded."""
    state = {name: value.bfloat16() for name, value in small("backbone_with_land_false").items()}
    assert equal(there_and_back(state, tmp_path), state)


def test_released_network__embeds_as_recorded(tmp_path: Path) -> None:
    """Part fViT of the released code gives its recorded embedding after a conversion and back."""
    case = load_case("c1_vit_withland")
    state = {name: torch.from_numpy(value) for name, value in case.params.items()}
    back = there_and_back(state, tmp_path)
    assert equal(back, state)
    weights = read_weights(str(tmp_path / "ours.safetensors"))
    images = torch.from_numpy(to_unit_range(case.inputs["image_u8"]))
    with torch.inference_mode():
        found = weights.embedder()(images)
    # The case's own tolerance: ten times the reference's distance from float64.
    torch.testing.assert_close(
        found, torch.from_numpy(case.outputs["embedding"]), atol=case.meta["tol"]["embedding"], rtol=0
    )


def test_architecture__of_the_full_size() -> None:
    """The published network is inferred from the recorded full-size shapes, without memory."""
    state = {
        name: torch.empty(shape, device="meta", dtype=getattr(torch, dtype))
        for name, shape, dtype in recorded(PART_FVIT)
    }
    conversion = from_published(state, "part_fvit.pth")
    architecture = conversion.weights.architecture
    assert architecture.transformer == FViTSize(768, 12, 11, 64, 2048)
    assert (architecture.num_tokens, architecture.patch_size) == (196, 8)
    assert (architecture.landmark_cnn, architecture.landmark_cnn_width) == ("mobilenetv3", 1.0)
    text = "\n".join(conversion.lines())
    assert "transformer: width 768, depth 12, heads 11 × 64, MLP 2048" in text
    assert "assumed, as shapes do not determine it: heads of 64, tokens from landmarks" in text
    assert "ignored: loss.weight [10, 768]: class weight, useful with the same classes" in text


def test_report__of_a_pretraining_checkpoint() -> None:
    """Used, missing and ignored names are reported with the reason; no name is left."""
    checkpoint = {"student": pretraining("module."), "teacher": pretraining(), "epoch": 3}
    conversion = from_published(checkpoint, "checkpoint.pth")
    assert list(conversion.weights.state.backbone) == [
        name.removeprefix("backbone.")
        for name in checkpoint["teacher"]
        if name.startswith("backbone.") and "loss" not in name
    ]
    text = "\n".join(conversion.lines())
    assert "source: checkpoint.pth, teacher" in text
    assert "backbone.patch_to_embedding.bias and 134 more" in text
    assert "missing: landmark CNN (stn.*, output_layer.*): needed to embed faces" in text
    assert "head.mlp.2.bias and 4 more: DINO head" in text
    assert "loss.weight [10, 24]: class weight, which pretraining never uses" in text
    assert "ignored: student: the other network; --role student takes it" in text
    assert "ignored: epoch: training state" in text
    kept = "\n".join(from_published(checkpoint, "checkpoint.pth", heads=True).lines())
    assert "prototypes: 50" in kept
    assert "classes: 10" in kept


def test_landmark_cnn__of_another_transformer() -> None:
    """Of a network with another transformer the landmark CNN is taken, the rest reported."""
    conversion = from_published(small(LANDMARK_CNN, "module."), "landmarks.pth")
    architecture = conversion.weights.architecture
    assert (architecture.transformer, architecture.num_tokens) == (None, 196)
    assert len(conversion.weights.state.backbone) == 294
    text = "\n".join(conversion.lines())
    assert "module.mask_token" in text
    assert "missing: transformer: usable as landmarks.weights=" in text
    with pytest.raises(CheckpointError, match="only a landmark CNN"):
        conversion.weights.embedder()


def converted(state: dict[str, Any], **options: Any) -> Conversion:
    return from_published(state, "a.pth", **options)


def test_add_landmark_cnn__makes_a_whole_network(tmp_path: Path) -> None:
    """A teacher and the landmark CNN of stage 1 embed; the conversion back omits the CNN."""
    teacher = {"teacher": pretraining()}
    alone = converted(teacher)
    with pytest.raises(CheckpointError, match="without a landmark CNN"):
        alone.weights.embedder()
    theirs = from_published(small(LANDMARK_CNN), "stage_1.pth").weights
    whole = add_landmark_cnn(converted(teacher, heads=True), theirs).weights
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.inference_mode():
        assert whole.embedder()(images).isfinite().all()
        assert torch.equal(whole.embedder().landmark_cnn(images), _landmark_cnn(small(LANDMARK_CNN))(images))
    assert whole.source == "a.pth, teacher; landmark CNN: stage_1.pth"
    left_out = write_published(str(tmp_path / "back.pth"), whole)
    assert list(left_out) == ["stn.*, output_layer.*"]
    assert equal(read_checkpoint(tmp_path / "back.pth")["teacher"], teacher["teacher"])


def _landmark_cnn(state: dict[str, Tensor]) -> torch.nn.Module:
    from lafs_ray.models.landmark_cnn import LandmarkCNN

    network = LandmarkCNN(196)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.eval()


@pytest.mark.parametrize(
    ("options", "name", "landmarks", "expected"),
    [
        ({}, "teacher", 49, "one of 196 landmarks"),
        ({"grid": True}, "teacher", 196, "reads a grid"),
        ({}, PART_FVIT, 196, "has a landmark CNN"),
    ],
)
def test_add_landmark_cnn__mismatch(options: dict[str, Any], name: str, landmarks: int, expected: str) -> None:
    """Another number of landmarks, or a second CNN, is refused with both."""
    state = {"teacher": pretraining()} if name == "teacher" else small(name)
    cnn = small(LANDMARK_CNN)
    cnn["output_layer.1.weight"] = cnn["output_layer.1.weight"][: 2 * landmarks]
    cnn["output_layer.1.bias"] = cnn["output_layer.1.bias"][: 2 * landmarks]
    theirs = from_published(cnn, "stage_1.pth").weights
    with pytest.raises(CheckpointError, match="stage_1.pth") as caught:
        add_landmark_cnn(converted(state, **options), theirs)
    assert caught.value.found == f"a landmark CNN of {landmarks} landmarks"
    assert expected in caught.value.expected


def test_report_conversion__weights_without_a_landmark_cnn() -> None:
    """A teacher has no landmark CNN to add."""
    alone = converted({"teacher": pretraining()})
    with pytest.raises(CheckpointError, match="no landmark CNN"):
        add_landmark_cnn(alone, report_conversion(alone.weights, heads=False).weights)


QKV = "transformer.layers.0.0.fn.fn.to_qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QKV: torch.zeros(150, 24)}, "a total head width of 50, not a multiple of 64"),
        ({"patch_to_embedding.weight": torch.zeros(24, 100)}, "tokens of 100 numbers"),
        ({"pos_embedding": None}, "pos_embedding"),
        ({"mlp_head.0.bias": None}, r"mlp_head\.0\.bias: absent"),
        ({"cls_token": torch.zeros(1, 1, 9)}, r"cls_token: \[1, 1, 9\] in the checkpoint"),
        ({"output_layer.1.weight": torch.zeros(98, 160)}, "positions for 196 tokens, and .* 49"),
        ({"stn.features.3.conv.0.weight": torch.zeros(71, 24, 1, 1)}, "not MobileNetV3"),
        ({"module.cls_token": torch.zeros(1, 1, 24)}, "begin with '' and, as module.cls_token"),
    ],
)
def test_from_published__of_another_architecture(change: dict[str, Tensor | None], message: str) -> None:
    """A mismatch is refused with name and shape, before anything is written."""
    state = {**small(PART_FVIT), **change}
    with pytest.raises(CheckpointError, match=message):
        converted({name: value for name, value in state.items() if value is not None})


def test_from_published__another_network() -> None:
    """Another kind of network is refused with its names."""
    with pytest.raises(CheckpointError, match=r"conv1\.weight, fc\.weight") as caught:
        converted({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)})
    assert "to_qkv" in caught.value.expected


def test_from_published__on_the_grid() -> None:
    """A transformer over the grid needs no landmark CNN; another number of tokens is refused."""
    whole = converted({"teacher": pretraining()}, grid=True)
    assert whole.missing == {}
    assert whole.weights.embedder().landmark_cnn is None
    state = small("backbone_with_land_false")
    state["pos_embedding"] = torch.zeros(1, 101, 24)
    with pytest.raises(CheckpointError, match=r"positions for 100 tokens") as caught:
        converted(state, grid=True)
    assert "(112 // 8)² = 196" in caught.value.expected


def test_from_published__heads_of_another_width() -> None:
    """Shapes contain the product of heads and their width; the caller sets the width."""
    size = converted(small("backbone_with_land_false"), head_dim=16).weights.architecture.transformer
    assert size is not None
    assert (size.heads, size.head_dim) == (4, 16)


@pytest.mark.parametrize("head_dim", [0, -16, 7])
def test_from_published__impossible_head_dim(head_dim: int) -> None:
    """A head's width that no number of heads fills is refused, zero and negative ones too."""
    with pytest.raises(CheckpointError, match=f"not a multiple of {head_dim}"):
        converted(small("backbone_with_land_false"), head_dim=head_dim)
