"""Partial FC: a margin softmax whose class centers are sharded over ranks and sampled each step.

Each rank holds a contiguous shard of the centers. All ranks gather all embeddings, compute the cosines with their own
shard, and reduce the softmax's maximum and sum; logits are never sent: a step sends G·D numbers and a few for each row,
a dense head under DDP the C·D of its gradient. With `sample_rate` r below 1, only that fraction of the classes is in a
step's softmax. Source: Partial FC (CVPR 2022, arXiv:2203.15565), with insightface's PartialFC_V2 as reference.

Shape letters: B rows of this rank, G rows of all ranks, D embedding width, C classes, S classes of
this rank in a step's softmax, K classes of a row (1, or 2 when mixed).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models.margin import MarginKind, MixedLabels
from lafs_ray.models.sharded_softmax import AllGather, CrossEntropy, MarginSettings, TargetClasses, all_gather_rows

_SAMPLE_STREAM = 0x73616D70
# Centers that are initialized or sent at once: 64 MB at a width of 256.
_BLOCK_ROWS = 2**16


class PartialFC(nn.Module):
    """Margin softmax and cross-entropy over sharded, sampled class centers.

    With a rate of 1 it equals a dense margin softmax, up to the order of sums, in a third to a half of the memory (one
    rank). Reduces over the default process group. DDP must not wrap it: each rank's gradient of its own centers is
    complete.

    Below a rate of 1, the gradient of `weight` is sparse: `RowAdamW` updates only the sampled
    centers. Ours: PartialFC_V2's gradient is dense, so that its optimizer decays every center in every step and moves
    unsampled ones along their momentum.

    Args:
        embedding_dim: D.
        num_classes: C, over all ranks; at least one for each rank.
        scale: s.
        margin: m.
        kind: which margin.
        sample_rate: fraction r of each rank's classes in a step's softmax, in (0, 1].
        seed: seed of the sample.
        rank: this rank.
        num_ranks: ranks that share the classes; with 1, torch.distributed is not used.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        margin: float = 0.4,
        kind: MarginKind = "cosface",
        sample_rate: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        super().__init__()
        assert kind in ("cosface", "arcface"), kind
        assert 0 < sample_rate <= 1, sample_rate
        assert 0 <= rank < num_ranks <= num_classes, (rank, num_ranks, num_classes)
        self.scale, self.margin, self.kind = scale, margin, kind
        self.sample_rate, self.seed = sample_rate, seed
        self.num_classes, self.rank, self.num_ranks = num_classes, rank, num_ranks
        self.start, self.stop = shard_bounds(num_classes, rank, num_ranks)
        # Exact decimals: 0.07 · 100 is 7 classes, in floating point a little more.
        self.num_sampled = math.ceil(Fraction(str(sample_rate)) * (self.stop - self.start))
        self.step = 0
        self.weight = nn.Parameter(_xavier_rows(num_classes, embedding_dim, self.start, self.stop))
        self._rows_sampled = 0
        self.weight.register_post_accumulate_grad_hook(self._mark_coalesced)  # type: ignore[no-untyped-call]

    def begin_step(self, step: int) -> None:
        """Set the global step, of which the sample is a function: (seed, step, rank)."""
        self.step = step

    def loss(self, embeddings: Tensor, targets: Tensor | MixedLabels) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of this rank's rows; collective, with B equal on all ranks.

        Computed in float32 even under autocast, then with products in TF32 on a GPU. Gradients are those of the mean
        over all G rows, after DDP has averaged the network's gradients over ranks. All ranks must scale the loss
        equally, and call backward once.

        Args:
            embeddings: float [B, D], of any length.
            targets: int64 class numbers [B], or two classes each.

        Returns:
            The mean over this rank's rows, float32 scalar; and whether each row's own class (of two, that of the
            greater weight) has a greater cosine, without margins, than all others in the softmax: bool [B].
        """
        device = embeddings.device.type
        # A network in bfloat16 has rounded its embeddings to 8 bits; TF32 keeps 11.
        tf32 = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            directions = F.normalize(embeddings.float(), dim=-1)
            classes, weights = _target_columns(targets)
            if self.num_ranks > 1:
                directions = AllGather.apply(directions, self.rank, self.num_ranks)  # type: ignore[no-untyped-call]
                classes, weights = (all_gather_rows(each, self.num_ranks) for each in (classes, weights))
            sample = self.sample(classes) if self.sample_rate < 1 else None
            self._rows_sampled = 0 if sample is None else len(sample)
            columns, is_local = self._columns(classes, sample)
            own = TargetClasses(columns, is_local, classes >= 0, weights)
            margin = MarginSettings(self.scale, self.margin, self.kind, self.num_ranks, tf32)
            losses, is_nearest = CrossEntropy.apply(  # type: ignore[no-untyped-call]
                directions, self.weight, sample, own, margin
            )
            mine = slice(self.rank * len(embeddings), (self.rank + 1) * len(embeddings))
            return losses[mine].mean(), is_nearest[mine]

    @torch.no_grad()
    def sample(self, classes: Tensor) -> Tensor:
        """Return rows of the shard [S], ascending: the batch's classes and random others.

        A class has the same random score in all micro-batches of a step, so that their samples differ only by their own
        classes.
        """
        generator = torch.Generator(self.weight.device)
        entropy = np.random.SeedSequence([_SAMPLE_STREAM, self.seed, self.step, self.rank])
        generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        num_local = self.stop - self.start
        # The last element is for classes of other ranks.
        scores = torch.rand(num_local + 1, generator=generator, device=self.weight.device)
        columns, is_local = self._columns(classes, None)
        scores[torch.where(is_local, columns, num_local)] = 2.0
        scores = scores[:num_local]
        count = self.num_sampled
        if classes.numel() > count:
            count = max(count, int((scores == 2.0).sum()))
        return scores.topk(count, sorted=False).indices.sort().values

    def _mark_coalesced(self, weight: Tensor) -> None:
        """Mark the gradient of one micro-batch as coalesced, which autograd forgets; the optimizer then sorts nothing.

        Its rows are those of the sample, ascending and each once. A sum of several micro-batches has more, unless torch
        has merged and marked it.
        """
        gradient = weight.grad
        if gradient is not None and gradient.is_sparse and gradient._nnz() == self._rows_sampled:
            gradient._coalesced_(True)

    def _columns(self, classes: Tensor, sample: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return columns of classes [G, K] in this rank's softmax (else 0), and if there is one."""
        is_local = (classes >= self.start) & (classes < self.stop)
        local = torch.where(is_local, classes - self.start, 0)
        if sample is None:
            return local, is_local
        return torch.where(is_local, torch.searchsorted(sample, local), 0), is_local

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Gather all ranks' rows on rank 0, block by block; a collective operation.

        Args:
            rows: one for each of this rank's classes: the centers, or the optimizer's moments.

        Returns:
            [C, …] on the CPU; None on other ranks. With one rank, `rows` itself.
        """
        rows = rows.detach()
        if self.num_ranks == 1:
            return rows
        if self.rank != 0:
            for first in range(0, len(rows), _BLOCK_ROWS):
                # NCCL sends only from the GPU.
                _exchange(dist.isend, rows[first : first + _BLOCK_ROWS].to(self.weight.device), 0)
            return None
        whole = torch.empty(self.num_classes, *rows.shape[1:], dtype=rows.dtype)
        whole[: self.stop] = rows
        for source in range(1, self.num_ranks):
            start, stop = shard_bounds(self.num_classes, source, self.num_ranks)
            for first in range(start, stop, _BLOCK_ROWS):
                block = whole[first : min(first + _BLOCK_ROWS, stop)]
                received = torch.empty_like(block, device=self.weight.device)
                _exchange(dist.irecv, received, source)
                block.copy_(received)
        return whole

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return a copy of this rank's shard of what `gather_rows` made, on any number of ranks."""
        assert len(whole) == self.num_classes, (len(whole), self.num_classes)
        return whole[self.start : self.stop].clone()


def _exchange(direction: Callable[..., Any], rows: Tensor, other: int) -> None:
    """Send or receive rows over the group's communicator; NCCL's `send` and `recv` would open one for each pair."""
    for work in dist.batch_isend_irecv([dist.P2POp(direction, rows, other)]):
        work.wait()


def shard_bounds(num_classes: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """Return a rank's first class and the one after its last; sizes differ by one at most."""
    each, more = divmod(num_classes, num_ranks)
    start = each * rank + min(rank, more)
    return start, start + each + (rank < more)


def _xavier_rows(num_classes: int, embedding_dim: int, start: int, stop: int) -> Tensor:
    """Return rows start…stop-1 of the [C, D] that `xavier_uniform_` would draw.

    The other rows are drawn and dropped, block by block, so that neither the initial centers nor the generator
    afterwards depend on the number of ranks.
    """
    bound = math.sqrt(3.0) * math.sqrt(2.0 / (num_classes + embedding_dim))
    rows = torch.empty(stop - start, embedding_dim)
    for first in range(0, num_classes, _BLOCK_ROWS):
        last = min(first + _BLOCK_ROWS, num_classes)
        block = torch.empty(last - first, embedding_dim).uniform_(-bound, bound)
        low, high = max(first, start), min(last, stop)
        if low < high:
            rows[low - start : high - start] = block[low - first : high - first]
    return rows


def _target_columns(targets: Tensor | MixedLabels) -> tuple[Tensor, Tensor]:
    """Return classes int64 [B, K], -1 for a second that equals the first, and weights float32.

    The class of the greater weight comes first.
    """
    if isinstance(targets, Tensor):
        return targets.unsqueeze(1), torch.ones_like(targets, dtype=torch.float32).unsqueeze(1)
    share = targets.share.float()
    is_one = targets.first == targets.second
    classes = torch.stack([targets.first, targets.second.masked_fill(is_one, -1)], dim=1)
    weights = torch.stack([share, 1 - share], dim=1)
    weights = torch.where(is_one.unsqueeze(1), weights.new_tensor([1.0, 0.0]), weights)
    is_swapped = (weights[:, 1] > weights[:, 0]).unsqueeze(1)
    return (torch.where(is_swapped, classes.flip(1), classes), torch.where(is_swapped, weights.flip(1), weights))
