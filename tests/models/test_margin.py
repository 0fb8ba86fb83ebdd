"""Margin softmax against its definition and against recorded losses and gradients."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.models.margin import MixedLabels
from tests.golden_cases import load_case, mixed_labels
from tests.models.margin_softmax import MarginSoftmax


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
    expected = _naive_logits(embeddings, head.weight.detach(), _dense(labels, 6), kind, 30.0, margin)
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
    # Random directions in eight dimensions: no angle and its margin exceed π.
    angular = (cosines.acos() + margins).cos()
    logits = 64.0 * (cosines - margins if kind == "cosface" else angular)
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
    targets = torch.from_numpy(case.inputs["labels"]) if labels == "int" else mixed_labels(case.inputs["soft_labels"])
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
