"""Rows taken and added back: as torch's own operators, in values and gradients, keeping less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lafs_ray.models import fvit as fvit_module
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.kept_rows import add_rows, keep_rows, norm_rows, take_rows
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


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_norm_rows__as_the_norm_of_the_rows(backend: str) -> None:
    """Output and all gradients are those of a layer norm over the rows taken, in double precision."""
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 2, 7) + 1).double().requires_grad_()
    weight = torch.randn(7, 7).double().requires_grad_()
    norm = nn.LayerNorm(7).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()

    def plain(x: Tensor) -> Tensor:
        taken, whole = take_rows(x, KEPT)
        return add_rows(whole, norm(taken) @ weight, KEPT)

    def whole_rows(x: Tensor) -> Tensor:
        normed, whole = norm_rows(x, norm, KEPT)
        return add_rows(whole, normed @ weight, KEPT)

    expected = plain(x)
    gradient = torch.arange(expected.numel(), dtype=x.dtype).view_as(expected).sin()
    inputs = (x, weight, norm.weight, norm.bias)
    with gpu_form_everywhere():
        found = torch.compile(whole_rows, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient)
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transformer__compiled_for_a_gpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that drop rows compute what the eager form computes, the last one of class tokens alone as well."""
    torch.manual_seed(0)
    fvit = FViT(FViTSize(16, 3, 2, 8, 24), 9, 12, dropout=0.0, drop_path=0.3).double()
    tokens = torch.rand(5, 9, 12).double()
    used = []
    monkeypatch.setattr(fvit_module, "norm_rows", lambda *given: used.append(1) or norm_rows(*given))
    results = []
    for compiled in (False, True):
        if compiled:
            for block in fvit.transformer.layers:
                block.compile(backend=backend, fullgraph=True)
        torch.manual_seed(1)
        with gpu_form_everywhere():
            out = fvit(tokens)
        assert bool(used) == compiled
        results.append([out, *torch.autograd.grad(out.sin().sum(), list(fvit.parameters()))])
    torch.testing.assert_close(*results)


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
