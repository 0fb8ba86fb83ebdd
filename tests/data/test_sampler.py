import time

import numpy as np
import pytest

from lafs_ray.data.neighbor_pairs import NeighborPairs
from lafs_ray.data.sampler import EpochSampler, PairDraws, _chunk_order, rank_batches

GRID = [(records, batch, chunk) for records in (12, 97, 1000) for batch in (1, 4, 12) for chunk in (1, 5, 64)] + [
    (5000, 164, 16),
    (5000, 96, 7),
]


def epoch_of(sampler: EpochSampler, epoch: int, world: int = 1) -> np.ndarray:
    """[steps, global_batch] put together from the ranks' rows."""
    first = epoch * sampler.steps_per_epoch
    parts = [
        np.stack([rows for _, rows in rank_batches(sampler, first, first + sampler.steps_per_epoch, r, world)])
        for r in range(world)
    ]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("records", "batch", "chunk"), GRID)
def test_epoch__visits_each_record_at_most_once_and_drops_less_than_a_batch(records, batch, chunk):
    sampler = EpochSampler(records, batch, seed=3, chunk_records=chunk)
    for epoch in range(3):
        seen = epoch_of(sampler, epoch).ravel()
        assert len(np.unique(seen)) == len(seen) == records // batch * batch
        assert seen.min() >= 0
        assert seen.max() < records


def sequence_by_definition(sampler: EpochSampler, epoch: int) -> np.ndarray:
    """The epoch's sequence before blocks shuffle it: chunks of a shifted grid, put in a row."""
    generator = np.random.default_rng([0x6368756E6B, sampler.seed, epoch])
    shift = int(generator.integers(sampler.chunk_records))
    edges = range(shift - sampler.chunk_records, sampler.num_records, sampler.chunk_records)
    chunks = [np.arange(max(edge, 0), min(edge + sampler.chunk_records, sampler.num_records)) for edge in edges]
    chunks = [chunk for chunk in chunks if len(chunk)]
    return np.concatenate([chunks[i] for i in generator.permutation(len(chunks))])


@pytest.mark.parametrize("chunk", [1, 2, 5, 64, 199, 200, 201, 1000])
def test_sequence__is_that_of_the_definition(chunk: int) -> None:
    """Arithmetic instead of tables finds the same record at every place, whatever is shortened."""
    for records in (12, 97, 200, 203):
        sampler = EpochSampler(records, 12, seed=3, chunk_records=chunk)
        for epoch in range(12):
            found = _chunk_order(sampler, epoch).records(np.arange(records))
            np.testing.assert_array_equal(found, sequence_by_definition(sampler, epoch))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("batch", [12, 84, 96])
def test_order__does_not_depend_on_the_number_of_ranks(world, batch):
    sampler = EpochSampler(1500, batch, seed=1, chunk_records=8)
    np.testing.assert_array_equal(epoch_of(sampler, 2), epoch_of(sampler, 2, world))


def test_order__differs_between_epochs_and_seeds_and_repeats_for_the_same():
    sampler = EpochSampler(500, 10, seed=0, chunk_records=4)
    again = EpochSampler(500, 10, seed=0, chunk_records=4)
    other = EpochSampler(500, 10, seed=1, chunk_records=4)
    np.testing.assert_array_equal(epoch_of(sampler, 0), epoch_of(again, 0))
    assert (epoch_of(sampler, 0) != epoch_of(sampler, 1)).mean() > 0.9
    # seed * epoch, as some codebases write it, would make all seeds equal in epoch 0
    assert (epoch_of(sampler, 0) != epoch_of(other, 0)).mean() > 0.9


def distinct_identities(chunk_records: int) -> float:
    """Mean number of identities in a batch of 256 from a file of 1000 identities × 40, in order."""
    sampler = EpochSampler(40_000, 256, seed=0, chunk_records=chunk_records)
    return float(np.mean([len(np.unique(batch // 40)) for batch in epoch_of(sampler, 0)]))


def test_batches__of_a_sorted_file_mix_identities():
    # A perfect shuffle shows 1000 (1 - 0.999^256) = 226 identities in a batch; the first 256 records of the file, 7.
    assert abs(distinct_identities(1) - 226) < 3
    assert distinct_identities(4) > 0.75 * 226
    assert distinct_identities(16) > 0.4 * 226


def test_blocks__of_whole_chunks_are_contiguous_reads():
    sampler = EpochSampler(100_000, 128, seed=0, chunk_records=256)
    jumps = []
    for blocks in sampler.blocks(0, 80):
        for block in blocks:
            records = np.sort(sampler.indices(block).ravel())
            assert len(records) == 256
            jumps.append(int((np.diff(records) != 1).sum()))
    # A block is one chunk, or the end of one and the start of the next.
    assert max(jumps) <= 1


def test_resume__at_any_step_continues_the_same_batches():
    sampler = EpochSampler(333, 9, seed=5, chunk_records=7)
    whole = dict(rank_batches(sampler, 0, 100, rank=1, world=3))
    for start in (0, 1, 17, 36, 37, 38, 99):
        resumed = dict(rank_batches(sampler, start, 100, rank=1, world=3))
        assert list(resumed) == list(range(start, 100))
        for step, rows in resumed.items():
            np.testing.assert_array_equal(rows, whole[step])


def test_sampler__of_five_million_records_seeks_to_any_step_in_under_a_second():
    sampler = EpochSampler(5_000_000, 1024, seed=0, chunk_records=1)
    step = sampler.steps_per_epoch * 7 + 4000
    start = time.perf_counter()
    _, rows = next(rank_batches(sampler, step, step + 1, rank=3, world=8))
    # Not a benchmark: 0.3 s were measured; replaying seven epochs would take minutes.
    assert time.perf_counter() - start < 5
    assert len(np.unique(rows)) == len(rows) == 128


def with_neighbors(share: float, batch: int = 84, seed: int = 1) -> EpochSampler:
    """1,500 records, of which those up to 99 are neighbors of the one 500 later."""
    first = np.concatenate([np.arange(100), np.arange(500, 600)])
    pairs = NeighborPairs.from_pairs(first, (first + 500) % 1000)
    return EpochSampler(1500, batch, seed, chunk_records=8, neighbors=PairDraws(pairs, share))


def all_paired(sampler: EpochSampler, first: int, stop: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Which rows are paired, [steps, rows of the rank]."""
    groups = sampler.blocks(first, stop, rank, world)
    return np.concatenate([np.concatenate([sampler.paired(b) for b in blocks], axis=1) for blocks in groups])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_neighbors__are_drawn_in_place_of_single_faces_two_by_two(share: float) -> None:
    """Rows 2k and 2k+1 are neighbors where they are paired; all others are those of the order without neighbors."""
    sampler = with_neighbors(share)
    plain = EpochSampler(1500, 84, 1, chunk_records=8)
    rows, paired = epoch_of(sampler, 2), all_paired(sampler, 34, 51)
    assert np.array_equal(paired[:, 0::2], paired[:, 1::2])
    # 714 pairs of rows; the standard deviation of their number is 13.
    assert paired.mean() == pytest.approx(share, abs=0.07 if share < 1 else 0)
    assert np.array_equal(rows[~paired], epoch_of(plain, 2)[~paired])
    first, second = rows[paired].reshape(-1, 2).T
    assert np.array_equal((first + 500) % 1000, second)
    assert (first % 500 < 100).all()
    assert len(np.unique(first)) > 100


@pytest.mark.parametrize("world", [2, 3, 6])
def test_neighbors__do_not_depend_on_ranks_or_on_where_a_run_continues(world: int) -> None:
    """Every rank has its rows of the one order, from any step."""
    sampler = with_neighbors(0.5)
    np.testing.assert_array_equal(epoch_of(sampler, 1), epoch_of(sampler, 1, world))
    whole = all_paired(sampler, 17, 34)
    np.testing.assert_array_equal(
        np.concatenate([all_paired(sampler, 17, 34, rank, world) for rank in range(world)], axis=1), whole
    )
    np.testing.assert_array_equal(all_paired(sampler, 22, 34), whole[5:])
    assert not np.array_equal(whole[:4], all_paired(with_neighbors(0.5, seed=2), 17, 21))


def test_neighbors__have_a_pass_of_their_own() -> None:
    """A face that is drawn again, also in one step, has other views; single faces keep the epoch."""
    sampler = with_neighbors(0.5)
    seen = []
    for blocks in sampler.blocks(20, 34):
        for block in blocks:
            (records, passes), paired = sampler.sample(block), sampler.paired(block)
            rows = np.arange(*block.steps)[:, None] * 84 + np.arange(*block.rows)
            assert np.array_equal(passes, np.where(paired, rows, 1))
            seen += list(zip(records.ravel().tolist(), passes.ravel().tolist(), strict=True))
    assert len(seen) == len(set(seen)) == 14 * 84
    assert len({record for record, _ in seen}) < 0.9 * len(seen)


def test_neighbors__of_a_batch_with_an_odd_row() -> None:
    """Its last row is single; without neighbors no row is paired."""
    sampler = with_neighbors(1.0, batch=33)
    paired = all_paired(sampler, 0, 8)
    assert paired[:, :32].all()
    assert not paired[:, 32].any()
    assert not all_paired(EpochSampler(1500, 33, 1), 0, 8).any()
