"""A residual branch over some of the rows: taking them, and adding them back, with no more memory than that needs.

torch's `index_add` keeps its source for the backward pass, whose shape is all it needs: 43 MB an image in the base
model. And the gradient of `index_select` is a tensor of zeros that rows are added to and that is then added to the
other gradient: three passes over all rows instead of one. Shape letters: B rows, k of them kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return x.index_select(0, rows) [k, …] and x [B, …], which what follows must use in place of the argument.

    Args:
        x: [B, …].
        rows: int64 [k], each at most once.
    """
    taken, whole = _TakeRows.apply(x, rows)  # type: ignore[no-untyped-call]
    return taken, whole


def add_rows(x: Tensor, branch: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """Return x.index_add(0, rows, branch, alpha=alpha) in x's dtype.

    Args:
        x: [B, …].
        branch: [k, …], perhaps of a narrower dtype.
        rows: int64 [k], each at most once.
        alpha: factor of the branch.
    """
    return cast("Tensor", _AddRows.apply(x, branch, rows, alpha))  # type: ignore[no-untyped-call]


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return x.index_select(0, rows), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        taken, whole = gradients
        (rows,) = ctx.saved_tensors
        return whole.index_add(0, rows, taken), None


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, rows: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.alpha, ctx.dtype = alpha, branch.dtype
        return x.index_add(0, rows, branch.to(x.dtype), alpha=alpha)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        taken = gradient.index_select(0, rows)
        scaled = torch.mul(taken, ctx.alpha, out=torch.empty_like(taken, dtype=ctx.dtype))
        return gradient, scaled, None, None
