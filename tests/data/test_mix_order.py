"""Several sets in one order: shares, passes, and independence of ranks and restarts."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lafs_ray.config import MIX_PERIOD
from lafs_ray.data.mix_order import Mix, MixOrder, quantize_shares
from lafs_ray.data.sampler import ChunkOrder, EpochSampler, rank_batches

SHARES = st.lists(st.floats(0.1, 50), min_size=1, max_size=4)
SIZES = st.integers(30, 3000)


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    shares = draw(SHARES)
    return Mix(tuple(draw(SIZES) for _ in shares), quantize_shares(shares))


def sampler_of(mix: Mix, batch: int, seed: int = 3, chunk_records: int = 4) -> EpochSampler:
    return EpochSampler(sum(mix.sizes), batch, seed, chunk_records, mix)


def order_of(mix: Mix, seed: int, chunk_records: int) -> MixOrder:
    return MixOrder(mix, seed, lambda size, entropy: ChunkOrder(size, chunk_records, entropy))


def sets_of(mix: Mix, images: np.ndarray) -> np.ndarray:
    """The set that each image belongs to."""
    return np.searchsorted(np.cumsum(mix.sizes), images, side="right")


@settings(max_examples=50)
@given(SHARES)
def test_shares__are_met_within_one_place_of_a_period(shares: list[float]) -> None:
    counts = quantize_shares(shares)
    assert sum(counts) == MIX_PERIOD
    for count, share in zip(counts, shares, strict=True):
        assert abs(count / MIX_PERIOD - share / sum(shares)) < 1 / MIX_PERIOD + 1e-12
        assert count >= 1
    assert quantize_shares([share * 8 for share in shares]) == counts, "only ratios count"


def test_shares__by_largest_remainder() -> None:
    assert quantize_shares([0.7, 0.3]) == (2867, 1229)
    assert quantize_shares([1, 1, 1]) == (1366, 1365, 1365)
    assert quantize_shares([1 / 4096, 4095 / 4096]) == (1, 4095)
    assert quantize_shares([1e-300, 1e-300]) == (2048, 2048)


def by_definition(mix: Mix, seed: int, chunk_records: int, places: int) -> list[tuple[int, int]]:
    """Image and pass at each place, one after the other."""
    found, turns = [], Counter[int]()
    orders: dict[tuple[int, int], list[int]] = {}
    for place in range(places):
        period, rest = divmod(place, MIX_PERIOD)
        if rest == 0:
            generator = np.random.default_rng([0x6D6978706572, seed, period])
            members = generator.permutation(np.repeat(np.arange(len(mix.sizes)), mix.counts)).tolist()
        number = members[rest]
        one, within = divmod(turns[number], mix.sizes[number])
        turns[number] += 1
        if (number, one) not in orders:
            order = ChunkOrder(mix.sizes[number], chunk_records, [0x6D69786368, seed, number, one])
            orders[number, one] = order.records(np.arange(mix.sizes[number])).tolist()
        found.append((sum(mix.sizes[:number]) + orders[number, one][within], one))
    return found


@settings(max_examples=5, deadline=None)
@given(mixes(), st.integers(0, 1 << 62), st.integers(1, 300))
def test_order__is_that_of_the_definition(mix: Mix, seed: int, chunk_records: int) -> None:
    """Arithmetic finds at every place what counting the turns of each set finds."""
    places = MIX_PERIOD + 777
    images, passes = order_of(mix, seed, chunk_records).records(np.arange(places))
    assert list(zip(images.tolist(), passes.tolist(), strict=True)) == by_definition(mix, seed, chunk_records, places)


@settings(max_examples=10, deadline=None)
@given(mixes(), st.integers(0, 5))
def test_period__has_each_set_as_often_as_its_count(mix: Mix, period: int) -> None:
    order = order_of(mix, 1, 4)
    images, _ = order.records(np.arange(period * MIX_PERIOD, (period + 1) * MIX_PERIOD))
    assert np.bincount(sets_of(mix, images), minlength=len(mix.sizes)).tolist() == list(mix.counts)


def test_window__anywhere_is_near_the_shares() -> None:
    """Any 512 neighboring places have a set at random in its share: within 5 deviations, 0.1 of 0.3."""
    mix = Mix((1000, 50, 3), quantize_shares([0.69, 0.3, 0.01]))
    images, _ = order_of(mix, 0, 4).records(np.arange(8 * MIX_PERIOD))
    second = (sets_of(mix, images) == 1).reshape(-1, 512).mean(axis=1)
    assert 0.2 < second.min() < second.max() < 0.4


@settings(max_examples=10, deadline=None)
@given(mixes(), st.integers(1, 20))
def test_pass__has_every_image_of_its_set_once(mix: Mix, chunk_records: int) -> None:
    images, passes = order_of(mix, 2, chunk_records).records(np.arange(2 * MIX_PERIOD))
    numbers = sets_of(mix, images)
    for number, size in enumerate(mix.sizes):
        of_set, its_passes = images[numbers == number] - sum(mix.sizes[:number]), passes[numbers == number]
        assert (np.diff(its_passes) >= 0).all(), "one pass after the other"
        complete = len(of_set) // size
        for one in range(complete):
            assert sorted(of_set[its_passes == one].tolist()) == [*range(size)]
        if complete > 1 and size > 50 * chunk_records:
            assert (of_set[its_passes == 0] != of_set[its_passes == 1]).mean() > 0.5, "another order in each pass"


@settings(max_examples=10, deadline=None)
@given(mixes(), st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 25), st.sampled_from([12, 24]))
def test_batches__do_not_depend_on_ranks_or_restarts(mix: Mix, world: int, start: int, batch: int) -> None:
    sampler = sampler_of(mix, batch)
    whole = dict(rank_batches(sampler, 0, 30))
    ranks = [dict(rank_batches(sampler, start, 30, rank, world)) for rank in range(world)]
    for step in range(start, 30):
        np.testing.assert_array_equal(np.concatenate([rows[step] for rows in ranks]), whole[step])


def test_epochs__lose_nothing_between_them() -> None:
    """The run's places are one sequence: with a batch that does not divide the epoch, passes are still complete."""
    mix = Mix((101, 40), quantize_shares([3, 1]))
    sampler = sampler_of(mix, 36)
    assert sampler.steps_per_epoch == 141 // 36
    steps = 40 * sampler.steps_per_epoch
    images = np.concatenate([rows for _, rows in rank_batches(sampler, 0, steps)])
    counts = np.bincount(images, minlength=141)
    # A shuffle block moves images by up to an epoch's end, and a pass begins anywhere.
    assert counts[:101].max() - counts[:101].min() <= 1
    assert counts[101:].max() - counts[101:].min() <= 1
    assert mix.passes(len(images)) == (36 * steps * 3072 / MIX_PERIOD / 101, 36 * steps * 1024 / MIX_PERIOD / 40)


def test_blocks__read_neighbors_of_each_set() -> None:
    """In a shuffle block the images of each set are whole chunks: a few contiguous reads, as of one set."""
    mix = Mix((100_000, 50_000), quantize_shares([0.5, 0.5]))
    sampler = sampler_of(mix, 128, chunk_records=256)
    for blocks in sampler.blocks(0, 24):
        for block in blocks:
            # Two sets, and of each the end of a chunk and the beginning of the next.
            assert (np.diff(np.sort(sampler.indices(block).ravel())) != 1).sum() <= 3


def test_sampler__passes_of_one_set_are_the_epochs() -> None:
    sampler = EpochSampler(100, 10, 0)
    for blocks in sampler.blocks(0, 30):
        for block in blocks:
            assert (sampler.sample(block)[1] == block.epoch).all()
