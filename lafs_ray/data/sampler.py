"""The order of records: a pure function of (seed, epoch), the same for any number of ranks.

An epoch is one sequence of all records: chunks of neighboring records, in random order. A shuffle
block is `BLOCK_STEPS` steps × `BLOCK_ROWS` rows of the global batch, 256 records that are shuffled as a whole, read by
one task and decoded by one worker. A rank needs only the blocks of its own rows, and any step is found without going
through those before it.

Trade: chunk_records = 1 is a perfect shuffle with one small read per record; 256 makes every block
one contiguous read of about 2 MB, for sets that are already shuffled.

Of several sets that are mixed (`Mix`), an epoch is as many places as all of them have images, and the places of all
epochs are one sequence; which image comes at each is in `lafs_ray.data.mix_order`.

With `Neighbors` a share of the rows, two by two, take pairs of neighboring faces instead: rows 2k and 2k + 1 of the
global batch, which are in one micro-batch of one rank. They are read one by one, whatever `chunk_records` is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.mix_order import Mix, MixOrder
from lafs_ray.data.neighbor_pairs import NeighborPairs

BLOCK_ROWS = 32
BLOCK_STEPS = 8

# Keep these random streams apart from every other use of the same seed.
_CHUNK_STREAM = 0x6368756E6B
_BLOCK_STREAM = 0x706F7274
_PLACE_STREAM = 0x6E65696768
_PAIR_STREAM = 0x7061697273


@dataclass(frozen=True)
class ShuffleBlock:
    """The part of a shuffle block that one rank needs.

    Args:
        epoch: epoch of these steps.
        step_block: which `BLOCK_STEPS` steps of the epoch, from 0.
        row_block: which `BLOCK_ROWS` rows of the global batch, from 0.
        steps: first and past-the-last global step needed.
        rows: first and past-the-last row of the global batch needed.
    """

    epoch: int
    step_block: int
    row_block: int
    steps: tuple[int, int]
    rows: tuple[int, int]

    @property
    def rows_per_step(self) -> int:
        """Records needed for each step."""
        return self.rows[1] - self.rows[0]

    @property
    def num_records(self) -> int:
        """Records needed for all steps."""
        return (self.steps[1] - self.steps[0]) * self.rows_per_step


@dataclass(frozen=True, eq=False)
class PairDraws:
    """Pairs of mined neighbors that are drawn in place of single faces.

    Args:
        pairs: of the set.
        share: of the rows of a batch that such pairs take, on average.
    """

    pairs: NeighborPairs
    share: float

    def describe(self, images: int, drawn: float) -> str:
        """Describe the pairs in one line.

        Args:
            images: in the set.
            drawn: faces that come in pairs in the whole run.
        """
        faces, count = len(self.pairs.faces), len(self.pairs.others) // 2
        share, often = 100 * self.share, drawn / faces
        return (
            f"neighbors: {count:,} pairs of {faces:,} of {images:,} faces, {share:.3g}% of each batch on average, a "
            f"face {often:,.{0 if often >= 10 else 1}f} times in the run on average; {images - faces:,} have none"
        )


@dataclass(frozen=True)
class EpochSampler:
    """Which records make up which batch.

    Args:
        num_records: images in the set, or in all sets of a mix.
        global_batch: records in one optimizer step, over all ranks and micro-batches.
        seed: seed of the order.
        chunk_records: neighboring records that stay together in the order.
        mix: sizes and shares of several sets; None: of one.
        neighbors: pairs that a share of the rows take; None: there are none.
    """

    num_records: int
    global_batch: int
    seed: int
    chunk_records: int = 1
    mix: Mix | None = None
    # Not compared: the order of single faces, which is cached by sampler, is the same with and without pairs.
    neighbors: PairDraws | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.mix is None or sum(self.mix.sizes) == self.num_records, "the sets of a mix make up all images"
        assert self.num_records >= self.global_batch >= 1, "an epoch holds at least one step"
        assert self.chunk_records >= 1, "a chunk holds at least one record"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch.

        The last num_records mod global_batch records of the epoch's sequence are left out: others in every epoch. In a
        mix none are, as the next epoch continues the passes through its sets. Faces whose rows pairs of neighbors take
        are left out, too.
        """
        return self.num_records // self.global_batch

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a global step belongs to."""
        return step // self.steps_per_epoch

    def rank_rows(self, rank: int, world: int) -> tuple[int, int]:
        """Return the first and the past-the-last row of the global batch that a rank trains on."""
        assert self.global_batch % world == 0, f"{self.global_batch} rows over {world} ranks"
        size = self.global_batch // world
        return rank * size, (rank + 1) * size

    def row_blocks(self, rank: int, world: int) -> range:
        """Return the numbers of the row blocks that a rank needs."""
        low, high = self.rank_rows(rank, world)
        return range(low // BLOCK_ROWS, (high - 1) // BLOCK_ROWS + 1)

    def blocks(self, first: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[list[ShuffleBlock]]:
        """Yield the blocks that a rank needs for steps first…stop-1; those of one list share steps.

        Blocks are counted from the start of each epoch, so a run that resumes inside a block reads the same records in
        the same order as one that was never interrupted.
        """
        low, high = self.rank_rows(rank, world)
        while first < stop:
            epoch = self.epoch_of(first)
            start_of_epoch = epoch * self.steps_per_epoch
            step_block = (first - start_of_epoch) // BLOCK_STEPS
            end = start_of_epoch + min((step_block + 1) * BLOCK_STEPS, self.steps_per_epoch)
            steps = (first, min(end, stop))
            yield [
                ShuffleBlock(
                    epoch,
                    step_block,
                    row_block,
                    steps,
                    (max(low, row_block * BLOCK_ROWS), min(high, (row_block + 1) * BLOCK_ROWS)),
                )
                for row_block in self.row_blocks(rank, world)
            ]
            first = steps[1]

    def indices(self, block: ShuffleBlock) -> NDArray[np.int64]:
        """Return the record indices of a block, int64 [steps, rows]."""
        return self.sample(block)[0]

    def sample(self, block: ShuffleBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the record indices of a block, and the number of each record's pass, int64 [steps, rows] each.

        The pass is the epoch, or in a mix that of the record's own set, which may be passed through several times in an
        epoch. Of a pair of neighbors it is the number of the row in the run, so that a face that is drawn again, be it
        in the same step, has other views.
        """
        # The whole block is shuffled, whatever part of it is needed.
        first_step, first_row = block.step_block * BLOCK_STEPS, block.row_block * BLOCK_ROWS
        num_steps, num_rows = self._whole(block)
        start = first_step * self.global_batch + first_row * num_steps
        entropy = [_BLOCK_STREAM, self.seed, block.epoch, block.step_block, block.row_block]
        shuffled = start + np.random.default_rng(entropy).permutation(num_steps * num_rows)
        records, passes = (part.reshape(num_steps, num_rows) for part in self._records(block.epoch, shuffled))
        if self.neighbors is not None:
            places = self._paired(block)
            entropy = [_PAIR_STREAM, self.seed, block.epoch, block.step_block, block.row_block]
            drawn = self.neighbors.pairs.draw(np.random.default_rng(entropy), int(places.sum()) // 2)
            records[places] = drawn.ravel()
            step = block.epoch * self.steps_per_epoch + first_step + np.arange(num_steps)
            row = step[:, None] * self.global_batch + first_row + np.arange(num_rows)
            passes = np.where(places, row, passes)
        needed = self._needed(block)
        return records[needed], passes[needed]

    def paired(self, block: ShuffleBlock) -> NDArray[np.bool_]:
        """Return which rows of a block are pairs of neighbors, two by two, bool [steps, rows]."""
        if self.neighbors is None:
            return np.zeros((block.steps[1] - block.steps[0], block.rows_per_step), np.bool_)
        return self._paired(block)[self._needed(block)]

    def _paired(self, block: ShuffleBlock) -> NDArray[np.bool_]:
        """Return `paired` of the whole block. Needs no record, so that a training worker can tell, too."""
        assert self.neighbors is not None, "the run has neighbors"
        num_steps, num_rows = self._whole(block)
        entropy = [_PLACE_STREAM, self.seed, block.epoch, block.step_block, block.row_block]
        chosen = np.random.default_rng(entropy).random((num_steps, num_rows // 2)) < self.neighbors.share
        places = np.zeros((num_steps, num_rows), np.bool_)
        places[:, : num_rows // 2 * 2] = chosen.repeat(2, axis=1)
        return places

    def _whole(self, block: ShuffleBlock) -> tuple[int, int]:
        """Return the steps and rows of the whole block."""
        num_steps = min(BLOCK_STEPS, self.steps_per_epoch - block.step_block * BLOCK_STEPS)
        return num_steps, min(BLOCK_ROWS, self.global_batch - block.row_block * BLOCK_ROWS)

    def _needed(self, block: ShuffleBlock) -> tuple[slice, slice]:
        """Return which steps and rows of the whole block are needed."""
        steps = np.array(block.steps) - block.epoch * self.steps_per_epoch - block.step_block * BLOCK_STEPS
        rows = np.array(block.rows) - block.row_block * BLOCK_ROWS
        return slice(*steps.tolist()), slice(*rows.tolist())

    def _records(self, epoch: int, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the record at each place of an epoch's sequence, and its pass, int64 [n] each."""
        if self.mix is None:
            return _chunk_order(self, epoch).records(places), np.full(len(places), epoch, np.int64)
        return _mix_order(self).records(places + epoch * self.steps_per_epoch * self.global_batch)


class ChunkOrder:
    """The records of a set, chunk by chunk in random order.

    The grid of chunks is shifted at random in each pass, so that the same records do not always share a chunk. It
    shortens only the first and the last chunk of the set, so where a chunk begins is arithmetic, and 4 bytes per chunk
    are kept: 125 million chunks of a set of 500 million take
    0.5 GB in every process that samples indices.

    Args:
        num_records: images in the set.
        chunk_records: neighboring records that stay together.
        entropy: of the order.
    """

    def __init__(self, num_records: int, chunk_records: int, entropy: Sequence[int]) -> None:
        self._size = chunk_records
        generator = np.random.default_rng(list(entropy))
        shift = int(generator.integers(self._size))
        self._begin = shift - self._size if shift else 0
        count = -(-(num_records - self._begin) // self._size)
        self._order = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
        generator.shuffle(self._order)
        end = self._begin + count * self._size
        # Positions of the two short chunks, and how many records each lacks. After a single chunk there is nothing to
        # move up.
        short = {0: -self._begin, count - 1: end - num_records} if count > 1 else {}
        self._short = sorted(
            (int(np.flatnonzero(self._order == chunk)[0]), missing) for chunk, missing in short.items()
        )

    def records(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the record at each place of the sequence, int64 [n]."""
        # Where the place would be if all chunks had one size.
        even = places.copy()
        for position, missing in self._short:
            even += missing * (even >= (position + 1) * self._size - missing)
        position, within = np.divmod(even, self._size)
        chunk = self._order[position].astype(np.int64)
        found: NDArray[np.int64] = np.maximum(self._begin + chunk * self._size, 0) + within
        return found


@lru_cache(maxsize=2)
def _chunk_order(sampler: EpochSampler, epoch: int) -> ChunkOrder:
    return ChunkOrder(sampler.num_records, sampler.chunk_records, [_CHUNK_STREAM, sampler.seed, epoch])


@lru_cache(maxsize=2)
def _mix_order(sampler: EpochSampler) -> MixOrder:
    assert sampler.mix is not None, "several sets"
    # `MixOrder` caches these itself, for each set.
    return MixOrder(sampler.mix, sampler.seed, lambda size, entropy: ChunkOrder(size, sampler.chunk_records, entropy))


def rank_batches(
    sampler: EpochSampler, first: int, stop: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (step, record indices int64 [global_batch / world]) for each step of one rank."""
    for blocks in sampler.blocks(first, stop, rank, world):
        rows = np.concatenate([sampler.indices(block) for block in blocks], axis=1)
        yield from enumerate(rows, start=blocks[0].steps[0])
