"""Heads: DINO's recorded outputs and gradients, names, margins against their definitions."""

from __future__ import annotations

import copy
import json
import math
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.models.heads import DINOHead, MixedLabels
from tests.golden_cases import ROOT, golden_head, load_case, mixed_labels
from tests.models.margin_softmax import MarginSoftmax

DINO_CASES = ["d1_dino_head_loss", "d2_dino_head_loss_nonorm"]


@pytest.mark.parametrize("name", DINO_CASES)
@pytest.mark.parametrize("step", [0, 1])
def test_dino_head__recorded_outputs_and_gradients(name: str, step: int) -> None:
    """Student and teacher outputs and the gradient to the features equal the reference's."""
    case = load_case(name)
    tol = case.meta["tol"]
    features = torch.from_numpy(case.inputs[f"student_feat_{step}"]).requires_grad_()
    student = golden_head(case, "student")(features)
    teacher = golden_head(case, "teacher")(torch.from_numpy(case.inputs[f"teacher_feat_{step}"]))
    student.backward(torch.from_numpy(case.outputs[f"grad_student_out_{step}"]))
    assert features.grad is not None

    def close(ours: Tensor, recorded: NDArray[np.float32], rtol: float, atol: float) -> None:
        np.testing.assert_allclose(ours.detach().numpy(), recorded, rtol=rtol, atol=atol)

    close(student, case.outputs[f"student_out_{step}"], 0, tol["out"])
    close(teacher, case.outputs[f"teacher_out_{step}"], 0, tol["out"])
    close(features.grad, case.outputs[f"grad_student_feat_{step}"], **tol["grad"])


def test_dino_head__published_names_and_shapes() -> None:
    """Names, shapes, order and counts are those of a published head of 100,000 prototypes."""
    published = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())
    record = published["dino_head_768_100000_student"]
    with torch.device("meta"):
        head = DINOHead(768, 100_000)
    ours = [(name, list(value.shape)) for name, value in head.state_dict().items()]
    assert ours == [(name, shape) for name, shape, *_ in record["keys"]]
    trainable = sum(value.numel() for value in head.parameters() if value.requires_grad)
    assert trainable == record["n_trainable"]


@pytest.mark.parametrize("frozen", [True, False])
def test_dino_head__prototype_norms(frozen: bool) -> None:
    """Norms start at 1, learn only when not frozen, and scale the outputs either way."""
    torch.manual_seed(0)
    head = DINOHead(8, 5, hidden_dim=6, bottleneck_dim=4, frozen_norm=frozen)
    features = torch.randn(3, 8)
    out = head(features)
    assert out.abs().max() <= 1 + 1e-6  # a cosine, up to float32 rounding
    out.square().sum().backward()
    assert (head.last_layer.weight_g.grad is None) == frozen
    assert head.last_layer.weight_v.grad is not None
    with torch.no_grad():
        head.last_layer.weight_g.fill_(2.0)
        torch.testing.assert_close(head(features), 2 * out.detach())


def test_dino_head__deep_copy_is_independent() -> None:
    """A copied head (the teacher) computes the same and follows its own weights only."""
    torch.manual_seed(0)
    head = DINOHead(8, 5, hidden_dim=6, bottleneck_dim=4)
    features = torch.randn(3, 8)
    head(features).sum().backward()
    twin = copy.deepcopy(head)
    before = head(features).detach()
    assert torch.equal(twin(features), before)
    with torch.no_grad():
        twin.last_layer.weight_v.neg_()
    assert torch.equal(head(features), before)
    torch.testing.assert_close(twin(features).detach(), -before)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_dino_head__initial_weights(num_layers: int) -> None:
    """The same seed gives the same head; MLP weights stay within ±2, biases are zero."""
    heads = []
    for _ in range(2):
        torch.manual_seed(7)
        heads.append(DINOHead(64, 16, hidden_dim=96, bottleneck_dim=32, num_layers=num_layers))
    first, second = (head.state_dict() for head in heads)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(name.startswith("mlp.") for name in first) == 2 * num_layers
    weight = first["mlp.0.weight"]
    assert not first["mlp.0.bias"].any()
    # 2048 draws or more: the sample deviation is within 5 % of 0.02 by over three sigma.
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def _naive_logits(
    embeddings: Tensor, weight: Tensor, targets: Tensor, kind: str, scale: float, margin: float
) -> Tensor:
    """The definition in `MarginSoftmax`, number by number."""
    logits = torch.zeros(len(embeddings), len(weight), dtype=torch.float64)
    for b, embedding in enumerate(embeddings.double()):
        for c, row in enumerate(weight.double()):
            cosine = float(embedding @ row / (embedding.norm() * row.norm()))
            a = margin * targets[b, c].item()
            if kind == "cosface":
                logits[b, c] = scale * (cosine - a)
            elif math.acos(cosine) + a <= math.pi:
                logits[b, c] = scale * math.cos(math.acos(cosine) + a)
            else:
                logits[b, c] = scale * (cosine - a * math.sin(a))
    return logits


def _dense(labels: Tensor | MixedLabels, num_classes: int) -> Tensor:
    """Targets float32 [B, C] of class numbers or mixed labels."""

    def one_hot(classes: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(classes, num_classes).float()

    if isinstance(labels, Tensor):
        return one_hot(labels)
    share = labels.share.unsqueeze(1)
    return share * one_hot(labels.first) + (1 - share) * one_hot(labels.second)


# The fourth row mixes a class with itself, the last is not mixed at all.
LABELS = torch.tensor([0, 5, 2, 2, 1])
MIXED = MixedLabels(LABELS, torch.tensor([1, 3, 0, 2, 4]), torch.tensor([0.7, 0.3, 0.5, 0.6, 1.0]))


@pytest.mark.parametrize(("kind", "margin"), [("cosface", 0.4), ("arcface", 0.5)])
@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["plain", "mixed"])
def test_margin_softmax__equals_its_definition(
    kind: Literal["cosface", "arcface"], margin: float, labels: Tensor | MixedLabels
) -> None:
    """Both margins equal the definition over dense targets, also past π."""
    generator = torch.Generator().manual_seed(3)
    head = MarginSoftmax(4, 6, scale=30.0, margin=margin, kind=kind)
    embeddings = torch.randn(5, 4, generator=generator) * 3
    with torch.no_grad():
        # One sample nearly opposite to its class: its angle and the margin exceed π.
        embeddings[0] = -head.weight[0] + 0.02 * head.weight[1]
        logits = head(embeddings, labels)
    expected = _naive_logits(
        embeddings, head.weight.detach(), _dense(labels, 6), kind, 30.0, margin
    )
    # float32 cosines times 30; near ±1 the sine in ArcFace amplifies rounding to about 1e-4.
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["plain", "mixed"])
def test_margin_softmax__loss_equals_the_dense_one(
    kind: Literal["cosface", "arcface"], labels: Tensor | MixedLabels
) -> None:
    """Loss and gradients are those of a cross-entropy with dense soft targets [B, C]."""
    torch.manual_seed(0)
    head = MarginSoftmax(8, 6, kind=kind)
    embeddings = torch.randn(5, 8, requires_grad=True)
    inputs = (embeddings, head.weight)
    loss, _ = head.loss(embeddings, labels)
    targets = _dense(labels, 6)
    cosines = head.cosines(embeddings)
    margins = head.margin * targets
    if kind == "cosface":
        logits = 64.0 * (cosines - margins)
    else:
        # Random directions in eight dimensions: no angle and its margin exceed π.
        logits = 64.0 * (cosines.acos() + margins).cos()
    dense = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    # float32 with logits of up to 64; arccosine amplifies rounding.
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(loss, dense, **tolerance)
    ours, theirs = torch.autograd.grad(loss, inputs), torch.autograd.grad(dense, inputs)
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("labels", ["int", "soft"])
def test_margin_softmax__recorded_loss_and_gradients(labels: str) -> None:
    """CosFace of `face_pre_pro/ViT_face.py`: logits, loss and gradients, both kinds of labels."""
    case = load_case("f1_cosface")
    assert (case.meta["s"], case.meta["m"]) == (64.0, 0.4)
    head = MarginSoftmax(16, 9, scale=case.meta["s"], margin=case.meta["m"])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(case.inputs["weight"]))
    embeddings = torch.from_numpy(case.inputs["embedding"]).requires_grad_()
    targets = (
        torch.from_numpy(case.inputs["labels"])
        if labels == "int"
        else mixed_labels(case.inputs["soft_labels"])
    )
    loss, _ = head.loss(embeddings, targets)
    loss.backward()
    tol, out = case.meta["tol"], case.outputs
    logits = head(embeddings, targets).detach().numpy()
    np.testing.assert_allclose(logits, out[f"logits_{labels}"], rtol=0, atol=tol["logits"])
    assert loss.item() == pytest.approx(float(out[f"ce_{labels}"]), abs=tol["loss"])
    for tensor, name in ((embeddings, "grad_emb"), (head.weight, "grad_w")):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), out[f"{name}_{labels}"], **tol["grad"])


def test_margin_softmax__nearest_class_ignores_margins() -> None:
    """A row is right if its own cosine is the greatest; of a mixed one the greater share's."""
    head = MarginSoftmax(3, 3, margin=0.9)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
    embeddings = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.9, 1.0]])
    _, is_nearest = head.loss(embeddings, torch.tensor([0, 0, 2]))
    assert is_nearest.tolist() == [True, False, True]
    first, second = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 2])
    _, is_nearest = head.loss(embeddings, MixedLabels(first, second, torch.tensor([0.3, 0.3, 0.7])))
    assert is_nearest.tolist() == [False, True, False]


def test_margin_softmax__embedding_on_its_class() -> None:
    """An embedding equal to its class weight gives finite ArcFace gradients."""
    head = MarginSoftmax(4, 3, kind="arcface", margin=0.5)
    embeddings = head.weight.detach().clone().requires_grad_()
    logits = head(embeddings, torch.arange(3))
    logits.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


def test_margin_softmax__autocast() -> None:
    """Under bfloat16 autocast the logits are those of float32 to the bit."""
    torch.manual_seed(0)
    head = MarginSoftmax(16, 10)
    embeddings, labels = torch.randn(4, 16), torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        plain = head(embeddings, labels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = head(embeddings, labels)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)
