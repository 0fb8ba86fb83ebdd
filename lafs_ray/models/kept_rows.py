"""A residual branch over some of the rows: taking them, and adding them back, with few passes over memory.

torch's `index_add` keeps its source for the backward pass, whose shape is all it needs: 43 MB an image in the base
model. And the gradient of `index_select` is a tensor of zeros that rows are added to and that is then added to the
other gradient: three passes over all rows instead of one. Compiled, `index_add` is a copy and a scatter; where each row
looks up its place in the branch, one kernel does it. Shape letters: B rows, k of them kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lafs_ray.models.placement import uses_gpu_form


class KeptRows(NamedTuple):
    """The rows of a batch that a branch is computed for, each of which counts B/k times.

    Args:
        rows: int64 [k], each at most once.
        places: int64 [B], the place of each row in `rows`; any for the others.
        factors: float32 [B], B/k for rows that are kept, 0 for the others.
    """

    rows: Tensor
    places: Tensor
    factors: Tensor


def keep_rows(order: Tensor, count: int) -> list[KeptRows]:
    """Keep the first `count` rows of permutations [N, B], for N branches."""
    batch = order.shape[1]
    places = order.argsort(dim=1)
    factors = (places < count).float() * (batch / count)
    parts = order[:, :count].unbind(), places.clamp(max=count - 1).unbind(), factors.unbind()
    return [KeptRows(*each) for each in zip(*parts, strict=True)]


def take_rows(x: Tensor, kept: KeptRows) -> tuple[Tensor, Tensor]:
    """Return x.index_select(0, rows) [k, …] and x [B, …], which what follows must use in place of the argument.

    Args:
        x: [B, …].
        kept: the rows.
    """
    taken, whole = _TakeRows.apply(x, *kept)  # type: ignore[no-untyped-call]
    return taken, whole


def normalizes_whole(x: Tensor) -> bool:
    """Return whether `norm_rows` is to be used: in compiled code for a GPU."""
    return torch.compiler.is_compiling() and uses_gpu_form(x)


def norm_rows(x: Tensor, norm: nn.LayerNorm, kept: KeptRows) -> tuple[Tensor, Tensor]:
    """Return norm(x.index_select(0, rows)) [k, …, D] and x [B, …, D], which what follows must use.

    Its gradient is computed for all rows, 0 for those that were not kept: so one kernel reads the branch's gradient and
    x, and adds to the other gradient; over the kept rows alone these are three, as their sums have other shapes.

    Args:
        x: [B, …, D].
        norm: over D, with weight and bias.
        kept: the rows.
    """
    normed, whole = _NormRows.apply(x, norm.weight, norm.bias, norm.eps, *kept)  # type: ignore[no-untyped-call]
    return normed, whole


def add_rows(x: Tensor, branch: Tensor, kept: KeptRows) -> Tensor:
    """Return x.index_add(0, rows, branch, alpha=B/k) in x's dtype.

    Args:
        x: [B, …].
        branch: [k, …], perhaps of a narrower dtype.
        kept: the rows.
    """
    return cast("Tensor", _AddRows.apply(x, branch, *kept))  # type: ignore[no-untyped-call]


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, places, factors)
        return x.index_select(0, rows), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        taken, whole = gradients
        rows, places, factors = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return add_looked_up(whole, taken, places, (factors > 0).float()), None, None, None
        return whole.index_add(0, rows, taken), None, None, None


class _NormRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: Tensor, places: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = x.shape[-1:]
        normed, mean, scale = torch.native_layer_norm(x.index_select(0, rows), shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, scale, places, factors)
        return normed, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        branch, whole = gradients
        x, weight, mean, scale, places, factors = ctx.saved_tensors
        mean, scale = mean.index_select(0, places), scale.index_select(0, places)
        is_kept = (factors > 0).view(-1, *[1] * (x.ndim - 1))
        gradient = torch.where(is_kept, branch.index_select(0, places), 0.0)
        # A view that Inductor's partitioner takes for more: without it, it keeps what x was computed of, a little less,
        # and computes x again in three of the backward pass's kernels.
        (x,) = torch.split_with_sizes(x, [x.shape[-1]], dim=-1)
        normalized = (x - mean) * scale
        scaled = gradient * weight
        means = scaled.mean(-1, keepdim=True), (scaled * normalized).mean(-1, keepdim=True)
        added = whole + scale * (scaled - means[0] - normalized * means[1])
        over = tuple(range(x.ndim - 1))
        return added, (gradient * normalized).sum(over), gradient.sum(over), None, None, None, None


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, rows: Tensor, places: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.alpha, ctx.dtype = len(x) / len(rows), branch.dtype
        if torch.compiler.is_compiling() or uses_gpu_form(x):
            return add_looked_up(x, branch, places, factors)
        return x.index_add(0, rows, branch.to(x.dtype), alpha=ctx.alpha)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        taken = gradient.index_select(0, rows)
        scaled = torch.mul(taken, ctx.alpha, out=torch.empty_like(taken, dtype=ctx.dtype))
        return gradient, scaled, None, None, None


def add_looked_up(x: Tensor, branch: Tensor, places: Tensor, factors: Tensor) -> Tensor:
    """Return x [B, …] plus branch[places] times factors [B], in x's dtype."""
    weights = factors.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.addcmul(x, branch.index_select(0, places), weights)
