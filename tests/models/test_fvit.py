"""fViT and PartFViT: recorded embeddings and gradients, published names, stochastic depth."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models.fvit import FVIT_SIZES, FViT, FViTSize, attend
from lafs_ray.models.landmark_cnn import LandmarkCNN, build_landmark_cnn
from lafs_ray.models.part_fvit import GridFViT, PartFViT
from lafs_ray.models.patch_sampling import extract_patches
from tests.golden_cases import ROOT, GoldenCase, load_case, mixed_labels, to_unit_range
from tests.models.margin_softmax import MarginSoftmax

TINY = FViTSize(width=24, depth=2, heads=2, head_dim=8, mlp_width=32)


def _fvit(case: GoldenCase) -> FViT:
    meta = case.meta
    size = FViTSize(meta["dim"], meta["depth"], meta["heads"], meta["dim_head"], mlp_width=meta["mlp_dim"])
    return FViT(size, meta["num_patches"], 3 * meta["patch_size"] ** 2).eval()


def _state(case: GoldenCase) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters of the network and, apart, the class weight."""
    state = {name: torch.from_numpy(value) for name, value in case.params.items()}
    return state, state.pop("loss.weight")


def _images(case: GoldenCase) -> Tensor:
    return torch.from_numpy(to_unit_range(case.inputs["image_u8"]))


def _check_image_case(case: GoldenCase, network: nn.Module, inputs: Tensor, head: Tensor) -> None:
    """Embedding, both logits, the loss and the gradient of every parameter."""
    margin = MarginSoftmax(case.meta["dim"], case.meta["num_class"])
    margin.load_state_dict({"weight": head})
    embedding = network(inputs)
    mixed = mixed_labels(case.inputs["soft_labels"])
    logits_soft = margin(embedding, mixed)
    loss, _ = margin.loss(embedding, mixed)
    loss.backward()
    tol, out = case.meta["tol"], case.outputs
    for ours, name, atol in (
        (embedding, "embedding", tol["embedding"]),
        (margin(embedding, torch.from_numpy(case.inputs["labels"])), "logits", tol["logits"]),
        (logits_soft, "logits_soft", tol["logits"]),
        (loss, "loss_soft_ce", tol["loss"]),
    ):
        np.testing.assert_allclose(ours.detach().numpy(), out[name], rtol=0, atol=atol)

    parameters = dict(network.named_parameters()) | {"loss.weight": margin.weight}
    assert set(parameters) == set(out["grad_names"])
    for name, (total, total_abs) in zip(out["grad_names"], out["grad_sum_abssum"], strict=True):
        grad = parameters[name].grad
        assert grad is not None, name
        values = grad.double()
        atol = tol["grad_rel_abssum"] * total_abs
        assert values.abs().sum().item() == pytest.approx(total_abs, abs=atol), name
        assert values.sum().item() == pytest.approx(total, abs=atol), name


def test_part_fvit__recorded_case() -> None:
    """Image to loss and back: every gradient, through the sampler into the landmark CNN."""
    case = load_case("c1_vit_withland")
    model = PartFViT(LandmarkCNN(196), _fvit(case), case.meta["patch_size"]).eval()
    state, head = _state(case)
    model.load_state_dict(state, strict=True)
    images = _images(case)
    with torch.no_grad():
        # 0.015 px: the tolerance of the recorded landmarks of the same CNN (tests/golden/b1_*).
        np.testing.assert_allclose(model.landmarks(images).numpy(), case.outputs["landmarks"], rtol=0, atol=0.015)
    _check_image_case(case, model, images, head)


@pytest.mark.parametrize("count", [196, 36])
def test_fvit__recorded_tokens(count: int) -> None:
    """Full and local views: n tokens take the first n + 1 positions."""
    case = load_case("c2_vit_tokens")
    model, (state, head) = _fvit(case), _state(case)
    model.load_state_dict(state, strict=True)
    margin = MarginSoftmax(case.meta["dim"], case.meta["num_class"])
    margin.load_state_dict({"weight": head})
    with torch.no_grad():
        embedding = model(torch.from_numpy(case.inputs[f"tokens_{count}"]))
        logits = margin(embedding, torch.from_numpy(case.inputs["labels"]))
    tol, out = case.meta["tol"], case.outputs
    np.testing.assert_allclose(embedding.numpy(), out[f"embedding_{count}"], rtol=0, atol=tol["embedding"])
    np.testing.assert_allclose(logits.numpy(), out[f"logits_{count}"], rtol=0, atol=tol["logits"])


def test_fvit__recorded_grid_patches() -> None:
    """A plain ViT: grid patches, row by row, equal the reference without landmarks."""
    case = load_case("c3_vit_grid_image")
    model, (state, head) = GridFViT(_fvit(case), case.meta["patch_size"]).eval(), _state(case)
    model.load_state_dict(state, strict=True)
    _check_image_case(case, model, _images(case), head)


def test_fvit__recorded_standard_coordinates() -> None:
    """Landmarks on the grid's centers, the mosaic turned back: the reference's `use_standcoord`."""
    case = load_case("c4_vit_standcoord")
    model, (state, head) = _fvit(case), _state(case)
    model.load_state_dict(state, strict=True)
    images, p = _images(case), case.meta["patch_size"]
    centers = torch.arange(14.0) * p + p / 2
    along_x, along_y = torch.meshgrid(centers, centers, indexing="ij")
    landmarks = torch.stack((along_x, along_y), dim=-1).reshape(1, 196, 2)
    tokens = extract_patches(images, landmarks.expand(len(images), -1, -1), p)
    # Cells run along x first here, so turning the mosaic swaps both cells and patch axes.
    cells = tokens.reshape(len(images), 14, 14, p, p, 3)
    turned = cells.transpose(1, 2).transpose(3, 4).reshape(len(images), 196, 3 * p * p)
    _check_image_case(case, model, turned, head)


@pytest.mark.parametrize("with_landmarks", [False, True])
def test_published_names_and_shapes(with_landmarks: bool) -> None:
    """The base model has the published names and shapes, in their order, without the classes."""
    keys = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())
    record = keys[f"backbone_with_land_{str(with_landmarks).lower()}"]
    with torch.device("meta"):
        model = FViT(FVIT_SIZES["base"])
        if with_landmarks:
            model = PartFViT(LandmarkCNN(196), model)
    ours = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    assert ours == [(name, shape) for name, shape, *_ in record["keys"] if name != "loss.weight"]
    ten_classes = 10 * 768
    count = sum(value.numel() for value in model.parameters())
    assert count == record["n_params"] - ten_classes


@pytest.mark.parametrize(
    ("name", "count"), [("base", 64_082_688), ("small", 11_187_584), ("shallow", 2_910_080), ("tiny", 314_496)]
)
def test_fvit__sizes(name: str, count: int) -> None:
    """The named sizes have the documented number of parameters."""
    with torch.device("meta"):
        model = FViT(FVIT_SIZES[name])
    assert sum(value.numel() for value in model.parameters()) == count


def test_attention__equals_its_definition() -> None:
    """softmax(q·k / √D) v with the full width D, not the head's, as a loop over heads."""
    torch.manual_seed(0)
    attention = FViT(TINY, 9, 12).eval().transformer.layers[0][0].fn.fn
    x = torch.randn(2, 5, 24)
    q, k, v = attention.to_qkv(x).split(2 * 8, dim=-1)
    mixed = []
    for head in range(2):
        part = slice(head * 8, (head + 1) * 8)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) * 24**-0.5).softmax(dim=-1)
        mixed.append(weights @ v[..., part])
    expected = F.linear(torch.cat(mixed, dim=-1), attention.to_out[0].weight, attention.to_out[0].bias)
    # float32: the fused kernel sums in another order.
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [0, 1, -1])
def test_token_attention__weights_of_the_block(block: int) -> None:
    """The weights that the block applies to its values: mixing with them gives the block's own output."""
    torch.manual_seed(0)
    model = FViT(TINY, 9, 12).eval()
    attending, seen = model.transformer.layers[block][0].fn.fn, {}
    attending.register_forward_hook(lambda _module, inputs, output: seen.update(x=inputs[0], output=output))
    tokens = torch.randn(2, 5, 12)
    # `forward` computes no more than the class token in the last block.
    model.transformer(model.with_positions(tokens))
    weights = model.token_attention(tokens, block)
    assert weights.shape == (2, 2, 6, 6)
    value = attending.to_qkv(seen["x"])[..., 32:].reshape(2, 6, 2, 8).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    # float32: the fused kernel sums in another order.
    torch.testing.assert_close(attending.to_out(mixed), seen["output"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 6), rtol=0, atol=1e-6)


def test_fvit__too_many_tokens() -> None:
    """More tokens than positions are a bug, caught by an assertion."""
    with pytest.raises(AssertionError, match=r"10, 9"):
        FViT(TINY, 9, 12)(torch.zeros(1, 10, 12))


def test_fvit__eval_is_deterministic_and_per_sample() -> None:
    """In eval mode a sample's embedding does not depend on its batch."""
    torch.manual_seed(0)
    model = FViT(TINY, 9, 12).eval()
    tokens = torch.randn(4, 9, 12)
    with torch.no_grad():
        # float32: matrix products of other shapes may sum in another order.
        torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]), rtol=1e-5, atol=1e-6)
        assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_fvit__rates(option: str) -> None:
    """Each rate alone makes training random; with both at 0 training equals evaluation."""
    tokens = torch.randn(8, 9, 12, generator=torch.Generator().manual_seed(0))
    rates = {"dropout": 0.0, "drop_path": 0.0}
    still = FViT(TINY, 9, 12, **rates).train()
    moving = FViT(TINY, 9, 12, **(rates | {option: 0.5})).train()
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(still(tokens), still.eval()(tokens))
        assert not torch.equal(moving(tokens), moving(tokens))


@pytest.mark.parametrize("per_sample", [False, True])
def test_fvit__same_class_token_and_gradients_without_the_others(per_sample: bool) -> None:
    """The last block computes the class token alone: embedding and all gradients are those of the whole block."""
    model = FViT(TINY, 9, 12, dropout=0.0, drop_path=0.3, drop_path_per_sample=per_sample).double()
    tokens = torch.randn(8, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for class_only in (True, False):
        model.zero_grad()
        torch.manual_seed(3)
        x = model.transformer(model.with_positions(tokens), class_only=class_only)
        embedding = model.mlp_head(x[:, 0])
        embedding.square().sum().backward()
        found.append([embedding, *(parameter.grad for parameter in model.parameters())])
    # float64: sums of other lengths are taken in another order.
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def _part_fvit() -> PartFViT:
    torch.manual_seed(0)
    return PartFViT(LandmarkCNN(9, width=0.25), FViT(TINY, 9, 48), patch_size=4)


def test_part_fvit__two_calls_equal_one() -> None:
    """`embed` at the model's own landmarks is `forward`."""
    model = _part_fvit().eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(images), model.embed(images, model.landmarks(images)))


def test_part_fvit__shares_its_parts() -> None:
    """The parts stay one with those given, also after a training step; a deep copy is separate."""
    torch.manual_seed(0)
    cnn, fvit = LandmarkCNN(9, width=0.25), FViT(TINY, 9, 48)
    model = PartFViT(cnn, fvit, patch_size=4)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # A plain sum would not do: after a layer norm it is constant.
    (model(torch.rand(2, 3, 64, 64)) @ torch.randn(24)).sum().backward()
    optimizer.step()
    theirs = cnn.state_dict() | fvit.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    assert not torch.equal(twin.cls_token, model.cls_token)
    assert len(list(model.parameters())) == len({id(value) for value in model.parameters()})


def test_part_fvit__constant_image() -> None:
    """An image without structure gives a finite embedding and finite gradients."""
    model = _part_fvit()
    with torch.no_grad():
        model.output_layer[1].weight.zero_()
        model.output_layer[1].bias.zero_()
    embedding = model(torch.zeros(2, 3, 64, 64))
    (embedding @ torch.randn(24)).sum().backward()
    assert embedding.isfinite().all()
    assert model.cls_token.grad is not None
    assert model.cls_token.grad.any()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_part_fvit__timm_landmarks() -> None:
    """A timm model takes the landmark CNN's place under the same two names."""
    cnn = build_landmark_cnn("timm/mobilenetv3_small_050", 9)
    model = PartFViT(cnn, FViT(TINY, 9, 48), patch_size=4).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 24)
    assert {"stn", "output_layer"} <= {name.split(".")[0] for name in model.state_dict()}


def test_part_fvit__patch_size_that_does_not_fit() -> None:
    """Tokens of another length than the transformer takes are refused at construction."""
    with pytest.raises(AssertionError, match="8"):
        PartFViT(LandmarkCNN(9, width=0.25), FViT(TINY, 9, 48), patch_size=8)


@pytest.mark.parametrize("count", [37, 197])
def test_attend__in_bfloat16(count: int) -> None:
    """Outputs and gradients are those of float32 up to some roundings to 8 bits."""
    generator = torch.Generator().manual_seed(0)
    parts = [2 * torch.randn(2, 3, count, 64, generator=generator) for _ in range(3)]
    weights = torch.randn(2, 3, count, 64, generator=generator)

    def outcome(dtype: torch.dtype) -> list[Tensor]:
        inputs = [part.to(torch.bfloat16).to(dtype).requires_grad_() for part in parts]
        mixed = attend(*inputs, 384**-0.5)
        assert mixed.dtype == dtype
        gradients = torch.autograd.grad(mixed, inputs, weights.to(torch.bfloat16).to(dtype))
        return [mixed.detach().float(), *(gradient.float() for gradient in gradients)]

    for found, expected in zip(outcome(torch.bfloat16), outcome(torch.float32), strict=True):
        # A rounding is half of 2⁻⁷ at most; scores, weights and sums are rounded one after another, and a score of 3
        # that is off by 2⁻⁸ of it moves its weight by 1 %.
        error = (found - expected).norm() / expected.norm()
        assert error < 0.02, error
