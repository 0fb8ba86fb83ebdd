"""Rows taken and added back: as torch's own operators, in values and gradients, keeping less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lafs_ray.models.kept_rows import add_rows, keep_rows, take_rows
from lafs_ray.models.placement import gpu_form_everywhere

ORDER = torch.tensor([[3, 0, 4, 1, 2]])
ROWS = ORDER[0, :3]
(KEPT,) = keep_rows(ORDER, 3)


def run(x: Tensor, weight: Tensor, fused: bool) -> tuple[list[Tensor], int]:
    """Output, gradients, and bytes kept of a branch over three of five rows."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if fused:
            taken, whole = take_rows(x, KEPT)
            out = add_rows(whole, taken @ weight, KEPT)
        else:
            branch = x.index_select(0, ROWS) @ weight
            out = x.index_add(0, ROWS, branch.to(x.dtype), alpha=5 / 3)
    gradient = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
    return [out, *torch.autograd.grad(out, (x, weight), gradient)], sum(kept.values())


def test_kept_rows__as_torch() -> None:
    """Equal to the bit, and the branch is not kept."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 2, 7, requires_grad=True), torch.randn(7, 7, requires_grad=True)
    (found, kept), (expected, kept_by_torch) = run(x, weight, fused=True), run(x, weight, fused=False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    # The places and factors of five rows are kept instead of the branch.
    assert kept_by_torch - kept == 3 * 2 * 7 * 4 - 5 * (8 + 4)


@pytest.mark.parametrize("compiled", [True, False])
def test_kept_rows__looked_up(compiled: bool) -> None:
    """The form for GPUs, and what is compiled, have the same values to rounding."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 2, 7, requires_grad=True), torch.randn(7, 7, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        taken, whole = take_rows(x, KEPT)
        return add_rows(whole, taken @ weight, KEPT)

    with gpu_form_everywhere():
        out = torch.compile(step, backend="eager", fullgraph=True)(x) if compiled else step(x)
    gradient = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
    expected, _ = run(x, weight, fused=False)
    torch.testing.assert_close([out, *torch.autograd.grad(out, (x, weight), gradient)], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_add_rows__narrow_branch(dtype: torch.dtype) -> None:
    """A branch of a narrower dtype gets its gradient in that dtype, rounded once."""
    x = torch.randn(5, 7, requires_grad=True)
    branch = torch.randn(3, 7, dtype=dtype).requires_grad_()
    out = add_rows(x, branch, KEPT)
    assert torch.equal(out, x.index_add(0, ROWS, branch.float(), alpha=5 / 3))
    gradient = torch.randn(5, 7)
    (found,) = torch.autograd.grad(out, branch, gradient)
    assert torch.equal(found, (gradient[ROWS] * (5 / 3)).to(dtype))
