"""The loss of `dino_loss` on a GPU: over some images at a time, its gradient made in the same pass.

As written in `dino_loss`, autograd keeps the scores in float32 and makes their gradient of several tensors of that
size: 3.4 GB for 256 images and 65,536 prototypes. Here float32 exists for a part of the images, and of all images only
the scores and their gradient, in the scores' dtype. Shape letters as in `dino_loss`; b images of a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS

# Float32 scores of a part: 84 MB. Smaller ones need more launches.
_NUMBERS = 21 << 20

PartLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
"""`part_loss`, or the same compiled."""


def chunked_dino_loss(
    student: Tensor, targets: Tensor, *, student_temp: float, num_views: int, part: PartLoss
) -> Tensor:
    """Return `dino_loss` of the same arguments, float32 (float64 for float64 scores).

    Args:
        student: scores [V·B, K], crop-major, with a gradient.
        targets: the teacher's distributions [2·B, K] of the global views, crop-major.
        student_temp: divides the student's scores.
        num_views: V, global views included.
        part: computes the loss of some images: `part_loss`, or the same compiled.
    """
    scores = student.view(num_views, -1, student.shape[-1])
    seen = targets.view(NUM_GLOBAL_VIEWS, -1, targets.shape[-1])
    assert scores.shape[1] == seen.shape[1], f"{student.shape[0]} student rows in {num_views} views, {len(targets)}"
    return cast("Tensor", _ChunkedLoss.apply(scores, seen, student_temp, part))  # type: ignore[no-untyped-call]


def part_loss(
    scores: Tensor, targets: Tensor, log_pairs: Tensor, gradient: Tensor, student_temp: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the two terms of some images' losses, summed over all pairs of views, and write the gradient.

    Args:
        scores: [V, b, K].
        targets: [2, b, K], at least float32.
        log_pairs: [V, 1], logarithm of the number of teacher views that a view is compared with.
        gradient: [V, b, K], receives `scale` times the gradient of the sum with respect to the scores.
        student_temp: divides the scores.
        scale: of the gradient.

    Returns:
        The scores' logsumexp [V, b], each of which counts once for each of its teacher views; and Σ target · score, a
        scalar, which is subtracted.
    """
    logits = scores.to(targets.dtype, copy=True).div_(student_temp)
    norms = torch.logsumexp(logits, dim=-1)
    both = targets.sum(0)
    # A global view is not compared with the same view of the teacher.
    products = (both * logits.sum(0)).sum() - (targets * logits[:NUM_GLOBAL_VIEWS]).sum()
    probabilities = logits.sub_((norms - log_pairs).unsqueeze(-1)).exp_().sub_(both)
    probabilities[:NUM_GLOBAL_VIEWS].add_(targets)
    gradient.copy_(probabilities.mul_(scale / student_temp))
    return norms, products


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, student_temp: float, part: PartLoss) -> Tensor:
        num_views, images, num_prototypes = scores.shape
        gradient = torch.empty_like(scores)
        # The mean over images and pairs.
        scale = 1.0 / (images * NUM_GLOBAL_VIEWS * (num_views - 1))
        log_pairs = targets.new_full((num_views, 1), math.log(NUM_GLOBAL_VIEWS))
        log_pairs[:NUM_GLOBAL_VIEWS] = 0.0
        parts = max(-(-images * num_views * num_prototypes // _NUMBERS), 1)
        all_scores, all_targets, gradients = (each.chunk(parts, dim=1) for each in (scores, targets, gradient))
        terms = [
            part(some, seen, log_pairs, into, student_temp, scale)
            for some, seen, into in zip(all_scores, all_targets, gradients, strict=True)
        ]
        ctx.save_for_backward(gradient)
        norms = torch.cat([norm for norm, _ in terms], dim=1)
        return ((norms * log_pairs.exp()).sum() - torch.stack([product for _, product in terms]).sum()) * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None
