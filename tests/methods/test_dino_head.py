"""DINO's head: recorded outputs and gradients, names, prototype norms, initial weights."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.methods.dino_loss import DINOHead
from tests.golden_cases import ROOT, golden_head, load_case

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
