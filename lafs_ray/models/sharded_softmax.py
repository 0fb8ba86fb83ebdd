"""Autograd functions of Partial FC: margin softmax over class centers sharded over ranks.

Shape letters: G rows of all ranks, D embedding width, S classes of this rank in the softmax, K own
classes of a row (1, or 2 when mixed).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lafs_ray.models.margin import MarginKind, with_margin


@dataclass(frozen=True)
class MarginSettings:
    """Scale and margin of the softmax, and the number of ranks.

    Args:
        scale: s.
        size: m.
        kind: which margin.
        num_ranks: ranks that share the classes; with 1, torch.distributed is not used.
        tf32: whether a GPU rounds the factors of the three products to 11 bits, which makes them several times as fast.
    """

    scale: float
    size: float
    kind: MarginKind
    num_ranks: int
    tf32: bool = False


@dataclass(frozen=True)
class TargetClasses:
    """The own classes of all rows, each [G, K].

    Args:
        columns: a class's column in this rank's softmax; 0 if it has none.
        is_local: whether it has one.
        is_class: false for a mixed row's second class if it equals the first.
        weights: of the target; the first's is the sum in that case.
    """

    columns: Tensor
    is_local: Tensor
    is_class: Tensor
    weights: Tensor


def all_gather_rows(tensor: Tensor, num_ranks: int) -> Tensor:
    """Gather the rows of all ranks, in the order of ranks."""
    rows = tensor.new_empty(num_ranks * len(tensor), *tensor.shape[1:])
    dist.all_gather(list(rows.chunk(num_ranks)), tensor.contiguous())
    return rows


class AllGather(Function):
    """All-gather of rows; backward sums gradients over ranks and returns this rank's rows.

    Multiplied by the number of ranks, since DDP divides by it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, num_ranks: int) -> Tensor:
        """Gather rows [B, …] of this rank to [G, …], in the order of ranks."""
        ctx.mine = slice(rank * len(rows), (rank + 1) * len(rows))
        ctx.num_ranks = num_ranks
        return all_gather_rows(rows, num_ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient [B, …] of this rank's rows."""
        # An all-reduce instead of a reduce-scatter, which gloo lacks in older versions of torch: G·D numbers are few
        # compared to the S·G cosines.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.mine] * ctx.num_ranks, None, None


class CrossEntropy(Function):
    """Directions [G, D] and centers to losses [G], with the softmax over all ranks.

    Forward and backward are written out, as autograd would store several [G, S] and [S, D]: here one [G, S] is kept
    from forward to backward, and the gradient of the centers is the only new [S, D]. Own classes are excluded from that
    array and computed separately, [G, K].
    """

    @staticmethod
    def forward(
        ctx: Any, directions: Tensor, weight: Tensor, sample: Tensor | None, own: TargetClasses, margin: MarginSettings
    ) -> tuple[Tensor, Tensor]:
        """Return losses float32 [G], equal on all ranks, and whether the own class is nearest [G].

        Args:
            ctx: state for backward.
            directions: float32 [G, D] of length 1, equal on all ranks.
            weight: this rank's centers, float32, of any length.
            sample: rows of `weight` in the softmax [S], ascending; None for all.
            own: columns of the rows' own classes in this rank's softmax.
            margin: scale and margin.
        """
        centers = weight if sample is None else weight[sample]
        inverse_norms = torch.linalg.vector_norm(centers, dim=1).clamp_min(1e-12).reciprocal()
        with _product_precision(tf32=margin.tf32):
            cosines = (directions @ centers.T).mul_(inverse_norms)
        # -inf where another rank holds the class, so that a maximum over ranks finds it.
        own_cosines = cosines.gather(1, own.columns).masked_fill(~own.is_local, -math.inf)
        _scatter_own(cosines, own, torch.full_like(own_cosines, -math.inf))
        greatest = torch.cat([cosines.amax(dim=1, keepdim=True), own_cosines], dim=1)
        _reduce(greatest, dist.ReduceOp.MAX, margin)
        first, rivals = greatest[:, 1], torch.cat([greatest[:, :1], greatest[:, 2:]], dim=1)
        is_nearest = first > rivals.amax(dim=1)

        logits, slopes = _apply_margin(greatest[:, 1:].masked_fill(~own.is_class, 0.0), own, margin)
        expected = (own.weights * logits).sum(dim=1)
        logits = logits.masked_fill(~own.is_class, -math.inf)
        highest = torch.maximum(margin.scale * greatest[:, 0], logits.amax(dim=1)).unsqueeze(1)
        exps = cosines.mul_(margin.scale).sub_(highest).exp_()
        total = exps.sum(dim=1)
        _reduce(total, dist.ReduceOp.SUM, margin)
        own_exps = (logits - highest).exp()
        total = total + own_exps.sum(dim=1)
        losses = total.log() + highest.squeeze(1) - expected

        ctx.save_for_backward(directions, weight, sample, inverse_norms)
        # Not a saved tensor, as backward writes the gradient into it.
        ctx.exps, ctx.total, ctx.own, ctx.scale, ctx.tf32 = exps, total, own, margin.scale, margin.tf32
        ctx.own_gradients = margin.scale * slopes * (own_exps / total.unsqueeze(1) - own.weights)
        ctx.mark_non_differentiable(is_nearest)
        return losses, is_nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return gradients of the mean over all G rows, scaled as this rank's mean was.

        That of directions is this rank's term of a sum over ranks; that of the centers is complete, and sparse if they
        were sampled.
        """
        directions, weight, sample, inverse_norms = ctx.saved_tensors
        gradients = ctx.exps
        assert gradients is not None, "the loss of Partial FC can be differentiated once only"
        ctx.exps = None
        # Only this rank's rows have a gradient here, 1/B each; other ranks' rows have the same.
        upstream = gradient.sum() / len(gradient)
        gradients.mul_((upstream * ctx.scale / ctx.total).unsqueeze(1))
        _scatter_own(gradients, ctx.own, upstream * ctx.own_gradients)
        with torch.autocast(directions.device.type, enabled=False), _product_precision(tf32=ctx.tf32):
            centers = weight if sample is None else weight[sample]
            of_centers = (gradients.T @ directions).mul_(inverse_norms.unsqueeze(1))
            # A center's length does not matter: its gradient is orthogonal to it.
            along = torch.einsum("sd,sd->s", of_centers, centers) * inverse_norms.square()
            of_centers.addcmul_(centers, along.unsqueeze(1), value=-1.0)
            of_directions = gradients.mul_(inverse_norms) @ centers
        if sample is not None:
            of_centers = torch.sparse_coo_tensor(
                sample.unsqueeze(0), of_centers, weight.shape, check_invariants=False, is_coalesced=True
            )
        return of_directions, of_centers, None, None, None


@contextlib.contextmanager
def _product_precision(*, tf32: bool) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to TF32's 11 bits, or not, whatever the process has set."""
    settings = torch.backends.cuda.matmul
    before, settings.allow_tf32 = settings.allow_tf32, tf32
    try:
        yield
    finally:
        settings.allow_tf32 = before


def _scatter_own(array: Tensor, own: TargetClasses, values: Tensor) -> None:
    """Write values [G, K] to the own classes' columns, one class of a row after the other.

    A class of another rank writes back what column 0 contains, which may be the other class's.
    """
    for k in range(values.shape[1]):
        column, is_local = own.columns[:, k : k + 1], own.is_local[:, k : k + 1]
        array.scatter_(1, column, torch.where(is_local, values[:, k : k + 1], array.gather(1, column)))


def _apply_margin(cosines: Tensor, own: TargetClasses, margin: MarginSettings) -> tuple[Tensor, Tensor]:
    """Return logits of own cosines [G, K], and the margin's derivative."""
    with torch.enable_grad():
        cosines = cosines.detach().requires_grad_()
        margined = with_margin(cosines, margin.size * own.weights, margin.kind)
        (slopes,) = torch.autograd.grad(margined.sum(), cosines)
    return margin.scale * margined.detach(), slopes


def _reduce(tensor: Tensor, operation: Any, margin: MarginSettings) -> None:
    """Reduce over ranks, in place."""
    if margin.num_ranks > 1:
        dist.all_reduce(tensor, operation)
