"""DINO's objective: cross-entropy between views, the teacher's center, and signs of collapse.

The loss sums the student's views before it meets the teacher: two products of [B, K] instead of one
for each of the 18 pairs. All distributions are float32, whatever autocast makes of the scores.
Shape letters: V views, the two global ones first; B images; K prototypes; D embedding width.
"Crop-major" scores [V·B, K] hold view v in rows v·B … (v+1)·B.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NUM_GLOBAL_VIEWS = 2


def dino_loss(student: Tensor, targets: Tensor, *, student_temp: float, num_views: int) -> Tensor:
    """Mean cross-entropy over all pairs of a teacher's view and another of the student's views.

    Definition:

        terms = []
        for g in range(2):
            for v in range(V):
                if v != g:
                    surprise = -targets[g] * log_softmax(student[v] / student_temp)
                    terms.append(surprise.sum(-1).mean())
        loss = sum(terms) / len(terms)

    Source: METHOD.md, "Objective and schedules"; golden cases d1, d2 and d9.

    Args:
        student: scores [V·B, K], crop-major, with a gradient.
        targets: the teacher's distributions [2·B, K] of the global views, crop-major, from
            `centered_targets` or `sinkhorn_targets`.
        student_temp: divides the student's scores.
        num_views: V, global views included.

    Returns:
        A scalar in nats, float32 (float64 for float64 scores), of this rank's images only.
    """
    assert num_views >= NUM_GLOBAL_VIEWS, num_views
    assert student.shape[0] * NUM_GLOBAL_VIEWS == targets.shape[0] * num_views, (
        f"{student.shape[0]} student rows in {num_views} views, {targets.shape[0]} teacher rows"
    )
    targets = _by_view(targets, NUM_GLOBAL_VIEWS)
    scores = _by_view(_widen(student) / student_temp, num_views)
    # Targets sum to 1, so -Σ target·log_softmax(s) = logsumexp(s) - Σ target·s. Over the pairs each
    # teacher view meets all views but its own: all of them minus the one of the same number.
    norms = torch.logsumexp(scores, dim=-1)
    all_norms = NUM_GLOBAL_VIEWS * norms.sum(0) - norms[:NUM_GLOBAL_VIEWS].sum(0)
    all_products = (targets.sum(0) * scores.sum(0)).sum(-1)
    own_products = (targets * scores[:NUM_GLOBAL_VIEWS]).sum((0, -1))
    num_pairs = NUM_GLOBAL_VIEWS * (num_views - 1)
    return (all_norms - all_products + own_products).mean() / num_pairs


@torch.no_grad()
def centered_targets(teacher: Tensor, center: Tensor, teacher_temp: float) -> Tensor:
    """Softmax of the teacher's centered scores [R, K] at its temperature, at least float32.

    Args:
        teacher: scores [R, K].
        center: [1, K], as the previous step left it.
        teacher_temp: divides the centered scores.
    """
    return F.softmax((_widen(teacher) - center) / teacher_temp, dim=-1)


@torch.no_grad()
def sinkhorn_targets(teacher: Tensor, teacher_temp: float, num_iterations: int = 3) -> Tensor:
    """The teacher's distributions, balanced so that a batch uses all prototypes equally.

    Ours, as in SwAV and DINOv2: in place of a running mean, the batch itself decides what is
    common. Definition, over the rows of all ranks:

        Q = exp(teacher / teacher_temp)
        for _ in range(num_iterations):
            Q = Q / Q.sum(rows); Q = Q / Q.sum(prototypes)

    Computed with logarithms: at temperature 0.02 a cosine of -1 is exp(-50), and whole rows of
    float32 would vanish. Every rank must call it.

    Args:
        teacher: scores [R, K] of both global views; equally many rows on every rank.
        teacher_temp: divides the scores.
        num_iterations: at least 1.

    Returns:
        [R, K], at least float32; rows sum to 1.
    """
    logs = _widen(teacher) / teacher_temp
    for _ in range(num_iterations):
        logs = logs - _logsumexp_of_all_ranks(logs)
        logs = logs - torch.logsumexp(logs, dim=1, keepdim=True)
    return logs.exp()


def _logsumexp_of_all_ranks(logs: Tensor) -> Tensor:
    """Logarithm of the summed exponentials of each column, over the rows of every rank: [1, K]."""
    highest = logs.amax(dim=0, keepdim=True)
    is_distributed = dist.is_available() and dist.is_initialized()
    if is_distributed:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    total = (logs - highest).exp().sum(dim=0, keepdim=True)
    if is_distributed:
        dist.all_reduce(total)
    return highest + total.log()


class Center(nn.Module):
    """Running mean of the teacher's scores, which keeps any one prototype from taking over.

    Ours: the mean moves once per optimizer step, over all micro-batches seen since; the reference
    moves it once per forward. With one micro-batch a step both agree; with more, ours makes
    accumulation equal to a larger batch.

    Args:
        num_prototypes: K.
        momentum: weight of the old center in an update.
    """

    center: Tensor
    pending: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        # Not persistent: a checkpoint is written between steps, where nothing is pending.
        self.register_buffer("pending", torch.zeros(1, num_prototypes), persistent=False)
        self.pending_rows = 0

    @torch.no_grad()
    def observe(self, teacher_logits: Tensor) -> None:
        """Note a micro-batch of raw, uncenterd teacher scores [R, K] for the next update."""
        self.pending += teacher_logits.sum(0, keepdim=True, dtype=self.pending.dtype)
        self.pending_rows += teacher_logits.shape[0]

    @torch.no_grad()
    def update(self, skip_update: Tensor | None = None) -> None:
        """Move the center towards the mean over all ranks' rows; every rank must call it.

        Ranks have seen equally many rows (the plan gives equal batches): only sums are exchanged.

        Args:
            skip_update: 0-d, on the center's device; where it is 1, the center stays as it is.
        """
        assert self.pending_rows > 0, "the center is updated after at least one micro-batch"
        rows = self.pending_rows
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.pending)
            rows *= dist.get_world_size()
        moved = torch.lerp(self.center, self.pending / rows, 1.0 - self.momentum)
        if skip_update is not None:
            moved = torch.where(skip_update > 0, self.center, moved)
        self.center.copy_(moved)
        self.pending.zero_()
        self.pending_rows = 0


@torch.no_grad()
def ssl_diagnostics(
    student: Tensor,
    targets: Tensor,
    center: Tensor,
    embeddings: Tensor,
    *,
    student_temp: float,
) -> dict[str, Tensor]:
    """Signs of learning and of collapse, from the global views of one micro-batch.

    Args:
        student: scores [R, K], crop-major; its first 2·B rows, the global views, are read.
        targets: the teacher's distributions [2·B, K], crop-major, as in the loss.
        center: [1, K], the running mean of the teacher's scores.
        embeddings: the teacher's embeddings [2·B, D].
        student_temp: as in the loss.

    Returns:
        Scalars on the scores' device, without a gradient:
        `teacher_entropy`, `student_entropy`: mean over rows, nats; log K is uniform (collapse to no
        opinion), 0 is one-hot. `kl`: nats, of the student's other view from the teacher's; the part
        of the loss that can be learnt. `center_norm`. `used_prototypes`: how many prototypes are
        some row's likeliest target, as a share of the most possible, min(2·B, K).
        `embedding_std`: √D times the mean deviation over rows of the embeddings' directions;
        near 1 when they spread evenly, 0 when all faces give the same one.
    """
    rows, num_prototypes = targets.shape
    predicted = F.log_softmax(_widen(student[:rows]) / student_temp, dim=-1)
    teacher_entropy = torch.special.entr(targets).sum(-1).mean()
    # The loss pairs different views, so the student's two are swapped against the teacher's.
    cross_entropy = -(targets * predicted.roll(rows // 2, dims=0)).sum(-1).mean()
    chosen = torch.zeros(num_prototypes, device=targets.device)
    chosen.index_fill_(0, targets.argmax(-1), 1.0)
    directions = F.normalize(_widen(embeddings), dim=-1)
    spread = directions.std(dim=0, correction=0).mean()
    return {
        "teacher_entropy": teacher_entropy,
        "student_entropy": -(predicted.exp() * predicted).sum(-1).mean(),
        "kl": cross_entropy - teacher_entropy,
        "center_norm": center.norm(),
        "used_prototypes": chosen.sum() / min(rows, num_prototypes),
        "embedding_std": spread * math.sqrt(embeddings.shape[-1]),
    }


def _widen(scores: Tensor) -> Tensor:
    """Scores in float32, or in float64 where they already are."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _by_view(scores: Tensor, num_views: int) -> Tensor:
    return scores.view(num_views, -1, scores.shape[-1])
