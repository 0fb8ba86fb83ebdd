"""`skip_update`: a step that changes nothing, decided on the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lafs_ray.methods.dino_loss import Center
from lafs_ray.methods.optim import RowAdamW, ema_update_, gradient_norms, parameter_groups

SKIP, GO = torch.tensor(1.0), torch.tensor(0.0)


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def states(module: nn.Module, optimizer: RowAdamW) -> list[Tensor]:
    inner = [value for state in optimizer.state.values() for value in state.values()]
    return [each.detach().clone() for each in (*module.parameters(), *inner)]


@pytest.mark.parametrize("fused", [True, False])
def test_row_adamw__state_from_another_device(fused: bool) -> None:
    """With a state of the other implementation it keeps its own, and skips updates."""

    def made(fused: bool) -> tuple[nn.Linear, RowAdamW]:
        module = network()
        return module, RowAdamW(parameter_groups(module, 0.1), lr=0.1, fused=fused)

    (module, optimizer), (other, saved) = made(fused), made(not fused)
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    saved.step()
    optimizer.load_state_dict(saved.state_dict())
    assert [group["fused"] for group in optimizer.param_groups] == [fused] * 2
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    before = states(module, optimizer)
    optimizer.skip_update = SKIP
    optimizer.step()
    for now, then in zip(states(module, optimizer), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_row_adamw__skipped_steps_change_nothing(fused: bool, sparse: bool) -> None:
    """Weights, moments and counts stay bitwise the same for any gradients; later steps continue."""
    skipping, plain = network(), network()
    steps: list[tuple[nn.Linear, RowAdamW]] = [
        (module, RowAdamW(parameter_groups(module, 0.1), lr=0.1, fused=fused)) for module in (skipping, plain)
    ]

    def step(module: nn.Linear, optimizer: RowAdamW, scale: float, skip_update: Tensor) -> None:
        gradient = torch.arange(15.0).view(3, 5) * scale
        if sparse:
            rows = torch.tensor([[0, 2]])
            gradient = torch.sparse_coo_tensor(rows, gradient[[0, 2]], (3, 5), check_invariants=True)
        module.weight.grad, module.bias.grad = gradient, torch.ones(3) * scale
        optimizer.skip_update = skip_update
        optimizer.step()

    for module, optimizer in steps:
        step(module, optimizer, 1.0, GO)
    before = states(*steps[0])
    step(*steps[0], float("nan"), SKIP)
    step(*steps[0], 3.0, SKIP)
    for name, (now, then) in enumerate(zip(states(*steps[0]), before, strict=True)):
        assert torch.equal(now, then), name
    for module, optimizer in steps:
        step(module, optimizer, 2.0, GO)
    for ours, theirs in zip(states(*steps[0]), states(*steps[1]), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(states(*steps[0])[0], before[0])


def test_teacher_and_center__skipped_step() -> None:
    """The teacher is unchanged, and so is a center after non-finite scores."""
    teacher, student = network(), nn.Linear(5, 3)
    before = copy.deepcopy(teacher.state_dict())
    ema_update_(teacher, student, 0.9, SKIP)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    ema_update_(teacher, student, 0.9, GO)
    expected = 0.9 * before["weight"] + 0.1 * student.weight
    torch.testing.assert_close(teacher.weight.detach(), expected.detach())
    center = Center(3)
    center.observe(torch.tensor([[1.0, 2.0, 3.0]]))
    center.update(GO)
    moved = center.center.clone()
    assert moved.any()
    center.observe(torch.full((2, 3), float("nan")))
    center.update(SKIP)
    assert torch.equal(center.center, moved)
    center.observe(torch.zeros(2, 3))
    center.update(GO)
    torch.testing.assert_close(center.center, 0.9 * moved)


def test_gradient_norms__dense_and_sparse() -> None:
    """One norm for each gradient, of a sparse one that of its rows; none without a gradient."""
    parameters: list[Any] = [nn.Parameter(torch.zeros(4, 2)) for _ in range(3)]
    parameters[0].grad = torch.full((4, 2), 2.0)
    rows = torch.tensor([[1, 3]])
    values = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    parameters[2].grad = torch.sparse_coo_tensor(rows, values, (4, 2), check_invariants=True)
    torch.testing.assert_close(gradient_norms(parameters), torch.tensor([32**0.5, 5.0]))
    assert gradient_norms(parameters[1:2]).shape == (0,)
