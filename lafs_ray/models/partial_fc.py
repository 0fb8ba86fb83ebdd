"""Partial FC: a margin softmax whose class centers are dealt out to ranks and sampled each step.

Each rank holds a contiguous share of the centers. All ranks gather all embeddings, compute the
cosines with their own share, and reduce the softmax's maximum and sum, so logits never travel: a
step sends G·D numbers and a few for each row, where a dense head under DDP sends the C·D of its
gradient. With `sample_rate` r below 1, only that part of the classes enters a step's softmax.
Source: Partial FC (CVPR 2022, arXiv:2203.15565), with insightface's PartialFC_V2 as reference.

Shape letters: B rows of this rank, G rows of all ranks, D embedding width, C classes, S classes of
this rank in a step's softmax, K classes of a row (1, or 2 when mixed).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models.heads import MarginKind, MixedLabels
from lafs_ray.models.sharded_softmax import (
    AllGather,
    CrossEntropy,
    Margin,
    OwnClasses,
    gathered,
)

_SAMPLE_STREAM = 0x73616D70
# Centers that are drawn or sent at once: 64 MB at a width of 256.
_BLOCK_ROWS = 2**16


class PartialFC(nn.Module):
    """Margin softmax and cross-entropy over sharded, sampled class centers.

    With one rank and a rate of 1 it is `MarginSoftmax` and its loss, in a third to a half of the
    memory; with more ranks it is the same up to the order of sums. Reduces over the default process
    group. DDP must not wrap it: each rank's gradient of its own centers is already whole.

    Below a rate of 1, the gradient of `weight` is sparse: `RowAdamW` moves the sampled centers
    alone. Ours: PartialFC_V2's gradient is dense, so that its optimizer decays every center in
    every step and moves those not sampled along their momentum.

    Args:
        embedding_dim: D.
        num_classes: C, over all ranks; at least one for each rank.
        scale: s.
        margin: m.
        kind: which margin.
        sample_rate: share r of each rank's classes in a step's softmax, in (0, 1].
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
        self.start, self.stop = class_range(num_classes, rank, num_ranks)
        # By the rate's decimal digits: 0.07 · 100 is 7 classes, in floating point a little more.
        self.num_sampled = math.ceil(Fraction(str(sample_rate)) * (self.stop - self.start))
        self.step = 0
        self.weight = nn.Parameter(_xavier_rows(num_classes, embedding_dim, self.start, self.stop))

    def begin_step(self, step: int) -> None:
        """Draw the sample of this global step from now on: a function of (seed, step, rank)."""
        self.step = step

    def loss(self, embeddings: Tensor, targets: Tensor | MixedLabels) -> tuple[Tensor, Tensor]:
        """Cross-entropy of this rank's rows; a collective operation, with B equal on all ranks.

        Computed in float32 even under autocast. Gradients are those of the mean over all G rows,
        once embeddings' gradients have been averaged over ranks, as DDP does with those of the
        network before. All ranks must scale the loss alike, and call backward once.

        Args:
            embeddings: float [B, D], of any length.
            targets: int64 class numbers [B], or two classes each.

        Returns:
            The mean over this rank's rows, float32 scalar; and whether each row's own class (of
            two, that of the greater share) has a greater cosine than all others in the softmax,
            margins left out: bool [B].
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = F.normalize(embeddings.float(), dim=-1)
            classes, shares = _as_columns(targets)
            if self.num_ranks > 1:
                directions = AllGather.apply(directions, self.rank, self.num_ranks)  # type: ignore[no-untyped-call]
                classes, shares = (gathered(each, self.num_ranks) for each in (classes, shares))
            sample = self.sample(classes) if self.sample_rate < 1 else None
            columns, is_here = self._columns(classes, sample)
            own = OwnClasses(columns, is_here, classes >= 0, shares)
            margin = Margin(self.scale, self.margin, self.kind, self.num_ranks)
            losses, is_nearest = CrossEntropy.apply(  # type: ignore[no-untyped-call]
                directions, self.weight, sample, own, margin
            )
            mine = slice(self.rank * len(embeddings), (self.rank + 1) * len(embeddings))
            return losses[mine].mean(), is_nearest[mine]

    @torch.no_grad()
    def sample(self, classes: Tensor) -> Tensor:
        """Numbers within the shard [S], ascending: classes of the batch, filled up at random.

        A class has the same random score in every micro-batch of a step, so that these share all
        but their positives.
        """
        generator = torch.Generator(self.weight.device)
        entropy = np.random.SeedSequence([_SAMPLE_STREAM, self.seed, self.step, self.rank])
        generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        num_local = self.stop - self.start
        # The last place takes the classes of other ranks.
        scores = torch.rand(num_local + 1, generator=generator, device=self.weight.device)
        columns, is_here = self._columns(classes, None)
        scores[torch.where(is_here, columns, num_local)] = 2.0
        scores = scores[:num_local]
        count = self.num_sampled
        if classes.numel() > count:
            count = max(count, int((scores == 2.0).sum()))
        return scores.topk(count, sorted=False).indices.sort().values

    def _columns(self, classes: Tensor, sample: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where classes [G, K] stand in this rank's softmax (0 if they do not), and if they do."""
        is_here = (classes >= self.start) & (classes < self.stop)
        local = torch.where(is_here, classes - self.start, 0)
        if sample is None:
            return local, is_here
        return torch.where(is_here, torch.searchsorted(sample, local), 0), is_here

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """All ranks' rows on rank 0, block after block; a collective operation.

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
                # NCCL sends from the GPU alone.
                dist.send(rows[first : first + _BLOCK_ROWS].to(self.weight.device), 0)
            return None
        whole = torch.empty(self.num_classes, *rows.shape[1:], dtype=rows.dtype)
        whole[: self.stop] = rows
        for source in range(1, self.num_ranks):
            start, stop = class_range(self.num_classes, source, self.num_ranks)
            for first in range(start, stop, _BLOCK_ROWS):
                block = whole[first : min(first + _BLOCK_ROWS, stop)]
                received = torch.empty_like(block, device=self.weight.device)
                dist.recv(received, source)
                block.copy_(received)
        return whole

    def own_rows(self, whole: Tensor) -> Tensor:
        """This rank's part of what `gather_rows` made, on whatever number of ranks; a copy."""
        assert len(whole) == self.num_classes, (len(whole), self.num_classes)
        return whole[self.start : self.stop].clone()


def class_range(num_classes: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """First class of a rank and the one after its last; sizes differ by one at most."""
    each, more = divmod(num_classes, num_ranks)
    start = each * rank + min(rank, more)
    return start, start + each + (rank < more)


def _xavier_rows(num_classes: int, embedding_dim: int, start: int, stop: int) -> Tensor:
    """Rows start…stop-1 of the [C, D] that `xavier_uniform_` would draw.

    The other rows are drawn as well and dropped, block by block, so that neither the start of a run
    nor the generator after it depends on the number of ranks.
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


def _as_columns(targets: Tensor | MixedLabels) -> tuple[Tensor, Tensor]:
    """Classes int64 [B, K], -1 for a second that is the first again, and shares float32 [B, K].

    The class of the greater share comes first.
    """
    if isinstance(targets, Tensor):
        return targets.unsqueeze(1), torch.ones_like(targets, dtype=torch.float32).unsqueeze(1)
    share = targets.share.float()
    is_one = targets.first == targets.second
    classes = torch.stack([targets.first, targets.second.masked_fill(is_one, -1)], dim=1)
    shares = torch.stack([share, 1 - share], dim=1)
    shares = torch.where(is_one.unsqueeze(1), shares.new_tensor([1.0, 0.0]), shares)
    is_swapped = (shares[:, 1] > shares[:, 0]).unsqueeze(1)
    return (
        torch.where(is_swapped, classes.flip(1), classes),
        torch.where(is_swapped, shares.flip(1), shares),
    )
