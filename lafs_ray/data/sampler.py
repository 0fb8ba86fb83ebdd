"""The order of records: a pure function of (seed, epoch), the same for any number of ranks.

An epoch is one sequence of all records: chunks of neighboring records, in random order. Batches
take it in *portions*: a portion feeds `BLOCK_ROWS` rows of the global batch for `BLOCK_STEPS` steps
and is shuffled as a whole. A portion (256 records) is what one read task fetches and one worker
crops; a rank needs only the portions of its own rows; any step is found without replaying others.

Trade: chunk_records = 1 is a perfect shuffle with one small read a record; 256 makes every portion
one contiguous read of about 2 MB, to be used on sets that are already shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 32
BLOCK_STEPS = 8

# Keep these random streams apart from every other use of the same seed.
_CHUNK_STREAM = 0x6368756E6B
_BLOCK_STREAM = 0x706F7274


@dataclass(frozen=True)
class ShuffleBlock:
    """What one read task fetches for one rank: some rows of the batch, for some steps of one epoch.

    Args:
        epoch: epoch of these steps.
        window: number of the window of steps within the epoch.
        slot: number of the group of rows within the global batch.
        steps: first and past-the-last global step wanted.
        rows: first and past-the-last row of the global batch wanted.
    """

    epoch: int
    window: int
    slot: int
    steps: tuple[int, int]
    rows: tuple[int, int]


@dataclass(frozen=True)
class EpochSampler:
    """Which records make up which batch.

    Args:
        num_records: images in the set.
        global_batch: records in one optimizer step, over all ranks and micro-batches.
        seed: seed of the order.
        chunk_records: neighboring records that stay together in the order.
    """

    num_records: int
    global_batch: int
    seed: int
    chunk_records: int = 1

    def __post_init__(self) -> None:
        assert self.num_records >= self.global_batch >= 1, "an epoch holds at least one step"
        assert self.chunk_records >= 1, "a chunk holds at least one record"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch.

        The last num_records mod global_batch records of the epoch's sequence are left out; they are
        others in every epoch.
        """
        return self.num_records // self.global_batch

    def epoch_of(self, step: int) -> int:
        """The epoch that a global step belongs to."""
        return step // self.steps_per_epoch

    def share(self, rank: int, world: int) -> tuple[int, int]:
        """First and past-the-last row of the global batch that a rank trains on."""
        assert self.global_batch % world == 0, f"{self.global_batch} rows over {world} ranks"
        size = self.global_batch // world
        return rank * size, (rank + 1) * size

    def windows(
        self, first: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[list[ShuffleBlock]]:
        """The portions that a rank needs for steps first…stop-1, one list for each window.

        Windows are counted from the start of each epoch, so a run that resumes inside a window
        reads the same records in the same order as one that was never interrupted.
        """
        low, high = self.share(rank, world)
        while first < stop:
            epoch = self.epoch_of(first)
            start_of_epoch = epoch * self.steps_per_epoch
            window = (first - start_of_epoch) // BLOCK_STEPS
            end = start_of_epoch + min((window + 1) * BLOCK_STEPS, self.steps_per_epoch)
            steps = (first, min(end, stop))
            yield [
                ShuffleBlock(
                    epoch,
                    window,
                    slot,
                    steps,
                    (max(low, slot * BLOCK_ROWS), min(high, (slot + 1) * BLOCK_ROWS)),
                )
                for slot in range(low // BLOCK_ROWS, (high - 1) // BLOCK_ROWS + 1)
            ]
            first = steps[1]

    def records(self, portion: ShuffleBlock) -> NDArray[np.int64]:
        """Record indices of a portion: int64 [steps, rows]."""
        whole = self._whole_block(portion.epoch, portion.window, portion.slot)
        first_step = portion.epoch * self.steps_per_epoch + portion.window * BLOCK_STEPS
        first_row = portion.slot * BLOCK_ROWS
        return whole[
            portion.steps[0] - first_step : portion.steps[1] - first_step,
            portion.rows[0] - first_row : portion.rows[1] - first_row,
        ]

    def _whole_block(self, epoch: int, window: int, slot: int) -> NDArray[np.int64]:
        """Every record of (window, slot), whoever needs it: int64 [window's steps, slot's rows]."""
        first_step = window * BLOCK_STEPS
        num_steps = min(BLOCK_STEPS, self.steps_per_epoch - first_step)
        first_row = slot * BLOCK_ROWS
        num_rows = min(BLOCK_ROWS, self.global_batch - first_row)
        start = first_step * self.global_batch + first_row * num_steps
        generator = np.random.default_rng([_BLOCK_STREAM, self.seed, epoch, window, slot])
        shuffled = start + generator.permutation(num_steps * num_rows)
        records = _chunk_order(self, epoch).records(shuffled)
        return records.reshape(num_steps, num_rows)


class _ChunkOrder:
    """The records of an epoch, chunk by chunk in random order.

    The grid of chunks is shifted at random each epoch, so that the same records do not always
    travel together. Only the first and the last chunk of the set can be cut short by it; where a
    chunk begins is arithmetic then, and 4 bytes a chunk are all that is kept: 125 million chunks of
    a set of 500 million take 0.5 GB in every process that plans.
    """

    def __init__(self, plan: EpochSampler, epoch: int) -> None:
        self._size = plan.chunk_records
        generator = np.random.default_rng([_CHUNK_STREAM, plan.seed, epoch])
        shift = int(generator.integers(self._size))
        self._begin = shift - self._size if shift else 0
        count = -(-(plan.num_records - self._begin) // self._size)
        self._order = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
        generator.shuffle(self._order)
        end = self._begin + count * self._size
        # Places of the two chunks, and how many records each lacks. Of a single one nothing
        # follows that would have to move up.
        cut = {0: -self._begin, count - 1: end - plan.num_records} if count > 1 else {}
        self._cut = sorted(
            (int(np.flatnonzero(self._order == chunk)[0]), missing)
            for chunk, missing in cut.items()
        )

    def records(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The record at each place of the epoch's sequence, int64 [n]."""
        # Where the place would be, were all chunks of one size.
        even = places.copy()
        for position, missing in self._cut:
            even += missing * (even >= (position + 1) * self._size - missing)
        position, within = np.divmod(even, self._size)
        chunk = self._order[position].astype(np.int64)
        found: NDArray[np.int64] = np.maximum(self._begin + chunk * self._size, 0) + within
        return found


@lru_cache(maxsize=2)
def _chunk_order(plan: EpochSampler, epoch: int) -> _ChunkOrder:
    return _ChunkOrder(plan, epoch)


def rank_batches(
    plan: EpochSampler, first: int, stop: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(step, record indices int64 [global_batch / world]) for each step of one rank."""
    for portions in plan.windows(first, stop, rank, world):
        rows = np.concatenate([plan.records(portion) for portion in portions], axis=1)
        yield from enumerate(rows, start=portions[0].steps[0])
