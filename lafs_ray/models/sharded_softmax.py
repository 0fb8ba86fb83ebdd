"""Softmax cross-entropy with a margin over class centers that are spread over ranks.

The autograd functions of Partial FC (`partial_fc.py`), and what they are told of a step.

Shape letters: G rows of all ranks, D embedding width, S classes of this rank in the softmax, K own
classes of a row (1, or 2 when mixed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lafs_ray.models.heads import MarginKind, with_margin


@dataclass(frozen=True)
class Margin:
    """What makes logits of cosines, and over how many ranks.

    Args:
        scale: s.
        size: m.
        kind: which margin.
        num_ranks: ranks that share the classes; with 1, torch.distributed is not used.
    """

    scale: float
    size: float
    kind: MarginKind
    num_ranks: int


@dataclass(frozen=True)
class OwnClasses:
    """The own classes of all rows, each [G, K].

    Args:
        columns: where a class stands in this rank's softmax; 0 if it does not.
        is_here: whether it does.
        is_class: false for a mixed row's second class if that is its first again.
        shares: of the target; the first's is the sum in that case.
    """

    columns: Tensor
    is_here: Tensor
    is_class: Tensor
    shares: Tensor


def gathered(tensor: Tensor, num_ranks: int) -> Tensor:
    """Rows of all ranks, in the order of ranks."""
    everyones = tensor.new_empty(num_ranks * len(tensor), *tensor.shape[1:])
    dist.all_gather(list(everyones.chunk(num_ranks)), tensor.contiguous())
    return everyones


class AllGather(Function):
    """Rows of all ranks; backward gives each its own rows of the sum of all ranks' gradients.

    Times the number of ranks, since DDP will divide by it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, num_ranks: int) -> Tensor:
        """Rows [B, …] of this rank to [G, …], in the order of ranks."""
        ctx.mine = slice(rank * len(rows), (rank + 1) * len(rows))
        ctx.num_ranks = num_ranks
        return gathered(rows, num_ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient [B, …] of this rank's rows."""
        # An all-reduce and not a reduce-scatter, which gloo lacks in older versions of torch: G·D
        # numbers are little beside the S·G of the cosines.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.mine] * ctx.num_ranks, None, None


class CrossEntropy(Function):
    """Directions [G, D] and centers to losses [G], the softmax over all ranks.

    Written out, backward included, as autograd would keep several [G, S] and [S, D]: here one
    [G, S] lives from forward to backward, and the gradient of the centers is the only new [S, D].
    The own classes are left out of that array and treated by themselves, [G, K].
    """

    @staticmethod
    def forward(
        ctx: Any,
        directions: Tensor,
        weight: Tensor,
        sample: Tensor | None,
        own: OwnClasses,
        margin: Margin,
    ) -> tuple[Tensor, Tensor]:
        """Losses float32 [G], the same on all ranks, and whether the own class was nearest [G].

        Args:
            ctx: what backward needs.
            directions: float32 [G, D] of length 1, the same on all ranks.
            weight: this rank's centers, float32, of any length.
            sample: rows of `weight` that take part [S], ascending; None for all.
            own: where the rows' own classes stand in this rank's part of the softmax.
            margin: what makes logits of cosines.
        """
        centers = weight if sample is None else weight[sample]
        inverse_norms = torch.linalg.vector_norm(centers, dim=1).clamp_min(1e-12).reciprocal()
        cosines = (directions @ centers.T).mul_(inverse_norms)
        # -inf where another rank holds the class, so that a maximum over ranks finds it.
        own_cosines = cosines.gather(1, own.columns).masked_fill(~own.is_here, -math.inf)
        _put(cosines, own, torch.full_like(own_cosines, -math.inf))
        greatest = torch.cat([cosines.amax(dim=1, keepdim=True), own_cosines], dim=1)
        _reduce(greatest, dist.ReduceOp.MAX, margin)
        first, rivals = greatest[:, 1], torch.cat([greatest[:, :1], greatest[:, 2:]], dim=1)
        is_nearest = first > rivals.amax(dim=1)

        logits, slopes = _margined(greatest[:, 1:].masked_fill(~own.is_class, 0.0), own, margin)
        expected = (own.shares * logits).sum(dim=1)
        logits = logits.masked_fill(~own.is_class, -math.inf)
        highest = torch.maximum(margin.scale * greatest[:, 0], logits.amax(dim=1)).unsqueeze(1)
        powers = cosines.mul_(margin.scale).sub_(highest).exp_()
        total = powers.sum(dim=1)
        _reduce(total, dist.ReduceOp.SUM, margin)
        own_powers = (logits - highest).exp()
        total = total + own_powers.sum(dim=1)
        losses = total.log() + highest.squeeze(1) - expected

        ctx.save_for_backward(directions, weight, sample, inverse_norms)
        # Not a saved tensor, as backward writes the gradient into it.
        ctx.powers, ctx.total, ctx.own, ctx.scale = powers, total, own, margin.scale
        ctx.own_gradients = margin.scale * slopes * (own_powers / total.unsqueeze(1) - own.shares)
        ctx.mark_non_differentiable(is_nearest)
        return losses, is_nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of the mean over all G rows, scaled as the mean of this rank's rows was.

        That of directions is this rank's part of a sum over ranks; that of the centers is whole,
        and sparse where they were sampled.
        """
        directions, weight, sample, inverse_norms = ctx.saved_tensors
        gradients = ctx.powers
        assert gradients is not None, "the loss of Partial FC can be differentiated once only"
        ctx.powers = None
        # Only this rank's rows have a gradient here, 1/B each; on other ranks theirs are the same.
        upstream = gradient.sum() / len(gradient)
        gradients.mul_((upstream * ctx.scale / ctx.total).unsqueeze(1))
        _put(gradients, ctx.own, upstream * ctx.own_gradients)
        with torch.autocast(directions.device.type, enabled=False):
            centers = weight if sample is None else weight[sample]
            of_centers = (gradients.T @ directions).mul_(inverse_norms.unsqueeze(1))
            # A center's length does not matter: its gradient has no part along itself.
            along = torch.einsum("sd,sd->s", of_centers, centers) * inverse_norms.square()
            of_centers.addcmul_(centers, along.unsqueeze(1), value=-1.0)
            of_directions = gradients.mul_(inverse_norms) @ centers
        if sample is not None:
            of_centers = torch.sparse_coo_tensor(
                sample.unsqueeze(0), of_centers, weight.shape, check_invariants=False
            )
        return of_directions, of_centers, None, None, None


def _put(array: Tensor, own: OwnClasses, values: Tensor) -> None:
    """Write values [G, K] where own classes stand, one after the other.

    A class that is elsewhere writes back what stands in column 0, where the other one may belong.
    """
    for k in range(values.shape[1]):
        column, is_here = own.columns[:, k : k + 1], own.is_here[:, k : k + 1]
        array.scatter_(
            1, column, torch.where(is_here, values[:, k : k + 1], array.gather(1, column))
        )


def _margined(cosines: Tensor, own: OwnClasses, margin: Margin) -> tuple[Tensor, Tensor]:
    """Logits of own cosines [G, K], and the margin's derivative there."""
    with torch.enable_grad():
        cosines = cosines.detach().requires_grad_()
        margined = with_margin(cosines, margin.size * own.shares, margin.kind)
        (slopes,) = torch.autograd.grad(margined.sum(), cosines)
    return margin.scale * margined.detach(), slopes


def _reduce(tensor: Tensor, operation: Any, margin: Margin) -> None:
    """Reduce over ranks, in place."""
    if margin.num_ranks > 1:
        dist.all_reduce(tensor, operation)
