from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from lafs_ray.methods.optim import (
    RowAdamW,
    cancel_gradients,
    clip_each_,
    ema_update_,
    layer_of,
    parameter_groups,
    set_hyperparameters,
)
from tests.golden_cases import ROOT, load_case

CASE = load_case("d7_clip_cancel")


class Shapes(nn.Module):
    """Parameters of given names and shapes, nested as their dots say."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], frozen: set[str]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, nn.Parameter(torch.zeros(shape), requires_grad=name not in frozen))


def recorded_module() -> Shapes:
    shapes = {"head.last_layer.weight_g": (6, 1), "unused.weight": (3, 5), "unused.bias": (3,)}
    shapes |= {
        name: CASE.inputs[f"grad::{name}"].shape for name in CASE.meta["order"] if name not in CASE.meta["none_grads"]
    }
    ordered = {name: shapes[name] for name in CASE.meta["order"]}
    module = Shapes(ordered, frozen={"head.last_layer.weight_g"})
    for name, parameter in module.named_parameters():
        if f"grad::{name}" in CASE.inputs:
            parameter.grad = torch.from_numpy(CASE.inputs[f"grad::{name}"].copy())
    return module


def names_of(module: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    return [by_id[id(parameter)] for parameter in parameters]


def test_clip_each__released_code() -> None:
    """Each gradient is clipped by its own norm; small and zero gradients keep every bit."""
    module = recorded_module()
    norms = clip_each_(module.parameters(), CASE.meta["clip"])
    tol = CASE.meta["tol"]
    np.testing.assert_allclose(norms.numpy(), CASE.outputs["norms"], **tol)
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert list(gradients) == CASE.meta["norm_order"]
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient.numpy(), CASE.outputs[f"clipped::{name}"], **tol)
        if np.linalg.norm(CASE.inputs[f"grad::{name}"]) < CASE.meta["clip"]:
            np.testing.assert_array_equal(gradient.numpy(), CASE.inputs[f"grad::{name}"])


def test_clip_each__no_gradient() -> None:
    """Without gradients there is nothing to clip and no norm to return."""
    assert clip_each_(nn.Linear(2, 2).parameters(), 1.0).shape == (0,)


def test_clip_each__infinite_gradient_stays_visible() -> None:
    """A gradient that overflowed turns to nan instead of being clipped into a small lie."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([float("inf"), 1.0])
    assert clip_each_([parameter], 3.0).isinf().all()
    assert parameter.grad.isnan().any()


def test_parameter_groups__released_code() -> None:
    """The two groups of the recorded module, in order, the frozen weight_g in neither."""
    module = recorded_module()
    groups = parameter_groups(module, 0.04)
    assert [names_of(module, group["params"]) for group in groups] == CASE.meta["groups"]
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0]


def test_parameter_groups__full_size_names() -> None:
    """The reference's groups of the real student: class token and positions are decayed."""
    rule = json.loads((ROOT / "c0_full_size" / "dino_param_groups.json").read_text())
    frozen = set(rule["excluded_requires_grad_false"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(rule["regularised"], (2, 2))
    shapes |= dict.fromkeys(rule["not_regularised"], (2,)) | dict.fromkeys(frozen, (2, 2))
    module = Shapes(shapes, frozen)
    decayed, kept = parameter_groups(module, 0.04)
    assert set(names_of(module, decayed["params"])) == set(rule["regularised"])
    assert set(names_of(module, kept["params"])) == set(rule["not_regularised"])


@pytest.mark.parametrize("epoch", CASE.meta["epochs"])
def test_cancel_gradients__released_code(epoch: int) -> None:
    """While the last layer is frozen its gradients are None and all others are untouched."""
    module = recorded_module()
    if epoch < CASE.meta["freeze_last_layer"]:
        cancel_gradients(module)
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    cancelled = without - set(CASE.meta["none_grads"])
    assert cancelled == set(CASE.meta["cancelled_by_epoch"][str(epoch)])


def test_cancel_gradients__adamw_leaves_the_parameter() -> None:
    """Without a gradient AdamW neither decays a parameter nor keeps a state for it."""
    module = nn.ModuleDict({"mlp": nn.Linear(2, 2), "last_layer": nn.Linear(2, 2)})
    before = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    module["last_layer"](module["mlp"](torch.ones(1, 2))).sum().backward()
    cancel_gradients(module)
    optimizer.step()
    assert torch.equal(module["last_layer"].weight, before["last_layer"].weight)
    assert not torch.equal(module["mlp"].weight, before["mlp"].weight)
    assert module["last_layer"].weight not in optimizer.state


def test_parameter_groups__shares_of_rate_and_decay() -> None:
    """Each pair of shares is a group; biases get no decay whatever their share is."""
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    groups = parameter_groups(module, 0.1, lambda name: 0.5 if name[0] == "a" else 1.0, lambda name: 0.25)
    found = {
        name: (group["lr_scale"], group["decay_scale"], group["weight_decay"])
        for group in groups
        for name in names_of(module, group["params"])
    }
    assert found == {
        "a.weight": (0.5, 0.25, 0.025),
        "a.bias": (0.5, 0.0, 0.0),
        "b.weight": (1.0, 0.25, 0.025),
        "b.bias": (1.0, 0.0, 0.0),
    }
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_hyperparameters(optimizer, 0.2, 0.4)
    written = {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups if g["params"]}
    assert written == {(0.1, 0.1), (0.1, 0.0), (0.2, 0.1), (0.2, 0.0)}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.stn.features.0.0.weight", 0),
        ("model.output_layer.1.bias", 0),
        ("model.patch_to_embedding.weight", 0),
        ("pos_embedding", 0),
        ("model.cls_token", 0),
        ("model.transformer.layers.0.0.fn.norm.weight", 1),
        ("transformer.layers.11.1.fn.fn.net.3.bias", 12),
        ("model.mlp_head.0.weight", 13),
        ("head.weight", 13),
    ],
)
def test_layer_of__from_input_to_output(name: str, layer: int) -> None:
    """Inputs are layer 0, blocks 1 to depth, what stands above depth + 1."""
    assert layer_of(name, 12) == layer


def test_set_hyperparameters__decay_goes_to_the_first_group() -> None:
    """The learning rate reaches both groups, the weight decay only the decayed one."""
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(2, 2), 0.04), lr=1.0)
    set_hyperparameters(optimizer, 0.5, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_ema_update__definition() -> None:
    """Every parameter is m·teacher + (1 − m)·student, every buffer the student's."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    student(torch.randn(4, 3))
    before = copy.deepcopy(teacher)
    ema_update_(teacher, student, 0.75)
    for now, old, new in zip(teacher.parameters(), before.parameters(), student.parameters(), strict=True):
        # float32 rounding of one product and one sum.
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new, rtol=1e-6, atol=1e-7)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_ema_update__momentum_of_one_and_of_none() -> None:
    """Momentum 1 leaves the teacher bit for bit; momentum 0 makes it the student."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = copy.deepcopy(teacher)
    ema_update_(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before.weight)
    ema_update_(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_row_adamw__moves_rows_as_adamw_does_in_the_steps_that_they_have_a_gradient() -> None:
    """Each row follows an AdamW of its own that sees only its own gradients; others rest."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 3, generator=generator)
    settings = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.9)}
    ours, alone = nn.Parameter(start.clone()), [nn.Parameter(row.clone()) for row in start]
    optimizer = RowAdamW([ours], **settings)
    optimizers = [torch.optim.AdamW([row], **settings) for row in alone]
    for step in range(8):
        gradient = torch.randn(6, 3, generator=generator)
        # Row 5 never comes, row 4 in the last step for the first time; row 0 comes in two pieces.
        rows = [0, 0] + [row for row in range(1, 5) if (step + 1) % (2 * row) == 0]
        part = torch.sparse_coo_tensor([rows], gradient[rows], start.shape, check_invariants=True)
        ours.grad = part
        optimizer.step()
        assert ours.grad is None
        for row in set(rows):
            alone[row].grad = gradient[row] * rows.count(row)
            optimizers[row].step()
        # The same operations in another order: a few float32 roundings a step.
        torch.testing.assert_close(ours.data, torch.stack([row.data for row in alone]))
    assert torch.equal(ours[5], start[5])
    assert optimizer.state[ours]["step"].flatten().tolist() == [8, 4, 2, 1, 1, 0]


def test_row_adamw__is_adamw_where_gradients_are_dense() -> None:
    """Dense gradients beside a sparse one give AdamW's own result, bit by bit, and its state."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4, 3, generator=generator)
    sparse, dense, plain = (nn.Parameter(value) for value in (values[0], values[1].clone(), values[1].clone()))
    ours, theirs = RowAdamW([sparse, dense]), torch.optim.AdamW([plain])
    for _ in range(3):
        gradient = torch.randn(4, 3, generator=generator)
        sparse.grad = gradient.to_sparse(1)
        dense.grad, plain.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    assert torch.equal(dense, plain)
    restored = RowAdamW([nn.Parameter(torch.zeros(4, 3)) for _ in range(2)])
    restored.load_state_dict(ours.state_dict())
    for mine, saved in zip(restored.state.values(), ours.state.values(), strict=True):
        assert all(torch.equal(mine[name], saved[name]) for name in saved)
