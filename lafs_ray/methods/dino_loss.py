"""DINO's head and objective: cross-entropy between views, centering, diagnostics of collapse.

The loss sums the student's views before the product with the teacher: two products of [B, K] instead of one for each of
the 18 pairs. All distributions are float32, also under autocast. Shape letters: V views, the two global ones first; B
images; K prototypes; D embedding width. "Crop-major" scores [V·B, K] hold view v in rows v·B … (v+1)·B. The head's
parameter names are those of published checkpoints.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NUM_GLOBAL_VIEWS = 2


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose row k is `weight_g[k] · weight_v[k] / ‖weight_v[k]‖`.

    Ours: written out instead of torch's weight-norm hooks, whose derived weight does not survive
    `copy.deepcopy` (the teacher); names and values are the same.

    Args:
        in_dim: width of the input.
        out_dim: number of rows, K.
        frozen_norm: keep `weight_g` at 1 without a gradient.
    """

    def __init__(self, in_dim: int, out_dim: int, *, frozen_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not frozen_norm)
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        bound = 1 / math.sqrt(in_dim)
        nn.init.uniform_(self.weight_v, -bound, bound)

    def effective_weight(self) -> Tensor:
        """Return the normalized weight [K, in_dim] in the parameters' dtype."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return self.weight_v * (self.weight_g / lengths)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., K]."""
        return F.linear(features, self.effective_weight())


class DINOHead(nn.Module):
    """DINO's projection: an MLP with GELU, L2 normalization, weight-normalized prototypes.

    The MLP's weights are initialized from a normal of standard deviation 0.02 truncated at ±2, from torch's current
    generator, its biases with zeros. Reference: `DINOHead` in `vision_transformer.py`.

    Args:
        in_dim: D, width of the embedding.
        num_prototypes: K, width of the output.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width before the prototypes.
        num_layers: linear layers in the MLP, at least 1.
        frozen_norm: keep the prototypes' lengths at 1 (DINO's `norm_last_layer`).
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        frozen_norm: bool = True,
    ) -> None:
        super().__init__()
        assert num_layers >= 1, num_layers
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            linear = nn.Linear(width_in, width_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(bottleneck_dim, num_prototypes, frozen_norm=frozen_norm)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [..., D] to prototype scores [..., K] (cosines, while norms are 1)."""
        return self.last_layer(F.normalize(self.mlp(embeddings), dim=-1))  # type: ignore[no-any-return]


def dino_loss(student: Tensor, targets: Tensor, *, student_temp: float, num_views: int) -> Tensor:
    """Return the mean cross-entropy over all pairs of a teacher view and a different student view.

    Definition:

        terms = []
        for g in range(2):
            for v in range(V):
                if v != g:
                    entropy = -targets[g] * log_softmax(student[v] / student_temp) terms.append(entropy.sum(-1).mean())
        loss = sum(terms) / len(terms)

    Source: DINO, section 3.1; `DINOLoss` in the released `lafs_train.py`.

    Args:
        student: scores [V·B, K], crop-major, with a gradient.
        targets: the teacher's distributions [2·B, K] of the global views, crop-major, from `centered_targets` or
            `sinkhorn_targets`.
        student_temp: divides the student's scores.
        num_views: V, global views included.

    Returns:
        A scalar in nats, float32 (float64 for float64 scores), over this rank's images.
    """
    assert num_views >= NUM_GLOBAL_VIEWS, num_views
    assert student.shape[0] * NUM_GLOBAL_VIEWS == targets.shape[0] * num_views, (
        f"{student.shape[0]} student rows in {num_views} views, {targets.shape[0]} teacher rows"
    )
    targets = _by_view(targets, NUM_GLOBAL_VIEWS)
    scores = _by_view(_widen(student) / student_temp, num_views)
    # Targets sum to 1, so -Σ target·log_softmax(s) = logsumexp(s) - Σ target·s. Each teacher view is paired with all
    # views but the same one: the sum over all minus that one.
    norms = torch.logsumexp(scores, dim=-1)
    all_norms = NUM_GLOBAL_VIEWS * norms.sum(0) - norms[:NUM_GLOBAL_VIEWS].sum(0)
    all_products = (targets.sum(0) * scores.sum(0)).sum(-1)
    own_products = (targets * scores[:NUM_GLOBAL_VIEWS]).sum((0, -1))
    num_pairs = NUM_GLOBAL_VIEWS * (num_views - 1)
    return (all_norms - all_products + own_products).mean() / num_pairs


@torch.no_grad()
def centered_targets(teacher: Tensor, center: Tensor, teacher_temp: float) -> Tensor:
    """Return the softmax of the teacher's centered scores, [R, K], at least float32.

    Args:
        teacher: scores [R, K].
        center: [1, K], after the previous step.
        teacher_temp: divides the centered scores.
    """
    return F.softmax((_widen(teacher) - center) / teacher_temp, dim=-1)


@torch.no_grad()
def sinkhorn_targets(teacher: Tensor, teacher_temp: float, num_iterations: int = 3) -> Tensor:
    """Return the teacher's distributions, balanced so that a batch uses all prototypes equally.

    Ours, as in SwAV and DINOv2: Sinkhorn-Knopp on the batch replaces the running mean. Definition,
    over the rows of all ranks:

        Q = exp(teacher / teacher_temp)
        for _ in range(num_iterations):
            Q = Q / Q.sum(rows); Q = Q / Q.sum(prototypes)

    Computed with logarithms: at temperature 0.02 a cosine of -1 gives exp(-50), and whole rows of
    float32 would underflow. A collective operation.

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
    """Return the logsumexp of each column over the rows of all ranks, [1, K]."""
    highest = logs.amax(dim=0, keepdim=True)
    is_distributed = dist.is_available() and dist.is_initialized()
    if is_distributed:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    total = (logs - highest).exp().sum(dim=0, keepdim=True)
    if is_distributed:
        dist.all_reduce(total)
    return highest + total.log()


class Center(nn.Module):
    """Running mean of the teacher's scores, against collapse to one prototype (DINO, section 3.1).

    Ours: updated once per optimizer step, over all its micro-batches; the reference updates once
    per forward. With one micro-batch a step both agree; with more, accumulation equals a larger batch.

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
        """Add a micro-batch of raw, uncentered teacher scores [R, K] to the next update."""
        self.pending += teacher_logits.sum(0, keepdim=True, dtype=self.pending.dtype)
        self.pending_rows += teacher_logits.shape[0]

    @torch.no_grad()
    def update(self, skip_update: Tensor | None = None) -> None:
        """Move the center towards the mean over all ranks' rows; a collective operation.

        All ranks have equally many rows, so only sums are exchanged.

        Args:
            skip_update: 0-d, on the center's device; 1 leaves the center unchanged.
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
    student: Tensor, targets: Tensor, center: Tensor, embeddings: Tensor, *, student_temp: float
) -> dict[str, Tensor]:
    """Return diagnostics of learning and collapse, from the global views of one micro-batch.

    Args:
        student: scores [R, K], crop-major; its first 2·B rows, the global views, are read.
        targets: the teacher's distributions [2·B, K], crop-major, as in the loss.
        center: [1, K], the running mean of the teacher's scores.
        embeddings: the teacher's embeddings [2·B, D].
        student_temp: as in the loss.

    Returns:
        Scalars on the scores' device, without a gradient:
        `teacher_entropy`, `student_entropy`: mean over rows, nats; log K is uniform (one kind of collapse), 0 is
        one-hot. `kl`: nats, KL divergence of the student's other view from the teacher's; the reducible part of the
        loss, where both are of one photograph. `center_norm`. `used_prototypes`: number of prototypes that are some
        row's argmax, divided by the maximum min(2·B, K). `embedding_std`: √D times the standard deviation over rows of
        the normalized embeddings, averaged over dimensions; near 1 when they spread evenly, 0 when all are equal.
    """
    rows, num_prototypes = targets.shape
    predicted = F.log_softmax(_widen(student[:rows]) / student_temp, dim=-1)
    teacher_entropy = torch.special.entr(targets).sum(-1).mean()
    # The loss pairs different views, so the student's two are swapped.
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
    """Return scores in float32; float64 stays."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _by_view(scores: Tensor, num_views: int) -> Tensor:
    return scores.view(num_views, -1, scores.shape[-1])
