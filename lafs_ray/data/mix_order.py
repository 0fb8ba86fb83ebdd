"""The order of several sets that are mixed by shares: pure arithmetic in (seed, place).

Places are numbered over the whole run. Of each `MIX_PERIOD` places, a set takes the same number; a permutation, another
one in each period, says which. The n-th image that a set gives is at place n mod size of its pass n // size, and each
pass is in another order (the sampler's `ChunkOrder`). So every set is passed through completely, again and again,
whatever its size, the batch and the ranks; and neighbors in a set's pass stay together in a shuffle block.

    period, rest = divmod(place, MIX_PERIOD)
    number = permutation(period)[rest]                      # of the set
    nth = period * counts[number] + how often the set came before in this period
    its pass, its place = divmod(nth, sizes[number])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import MIX_PERIOD

# Keep these random streams apart from every other use of the same seed.
_CHUNK_STREAM = 0x6D69786368
_PERIOD_STREAM = 0x6D6978706572

# Passes of one set, and periods, that a shuffle block usually reaches into.
_KEPT_PASSES, _KEPT_PERIODS = 2, 4


@dataclass(frozen=True)
class Mix:
    """Several sets, joined in this order, and how often each has its turn.

    Args:
        sizes: images of each set.
        counts: of `MIX_PERIOD` places, those of each set.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.counts), "a count for each set"
        assert min(self.sizes) >= 1, "no set is empty"
        assert min(self.counts) >= 1, "each set has its turn"
        assert sum(self.counts) == MIX_PERIOD, "the counts fill a period"

    def passes(self, places: int) -> tuple[float, ...]:
        """Return how often each set is passed through in so many places, up to the order within a period."""
        return tuple(places * count / MIX_PERIOD / size for size, count in zip(self.sizes, self.counts, strict=True))


def quantize_shares(shares: Sequence[float]) -> tuple[int, ...]:
    """Return how many of `MIX_PERIOD` places each set takes, by largest remainder.

    A share is met within 1 / MIX_PERIOD. Only their ratios count.

    Args:
        shares: positive; none below 1 / MIX_PERIOD of their sum.
    """
    total = sum(map(Fraction, shares))
    exact = [Fraction(share) * MIX_PERIOD / total for share in shares]
    counts = [int(one) for one in exact]
    # Of equal remainders the first.
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: MIX_PERIOD - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


class Order(Protocol):
    """The order of one pass through a set."""

    def records(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image at each place of the pass, int64 [n]."""
        ...


class MixOrder:
    """The images of a mix, one at each place of a run.

    Args:
        mix: the sets.
        seed: of the order.
        order_of: makes the order of a pass from the number of images and the entropy.
    """

    def __init__(self, mix: Mix, seed: int, order_of: Callable[[int, Sequence[int]], Order]) -> None:
        self._sizes, self._counts = np.array(mix.sizes), np.array(mix.counts)
        self._first_images = np.cumsum(self._sizes) - self._sizes
        self._seed, self._order_of = seed, order_of
        self._period = lru_cache(maxsize=_KEPT_PERIODS)(self._make_period)
        # Each set has a cache of its own: none pushes out the order of another.
        self._passes: list[Callable[[int], Order]] = [
            lru_cache(maxsize=_KEPT_PASSES)(partial(self._make_pass, number)) for number in range(len(mix.sizes))
        ]

    def records(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the image at each place of the run, and its pass through its set, int64 [n] each."""
        periods, rest = np.divmod(places, MIX_PERIOD)
        numbers, nth = np.empty_like(places), np.empty_like(places)
        for period in _values(periods):
            here = np.flatnonzero(periods == period)
            member, before = self._period(period)
            numbers[here] = member[rest[here]]
            nth[here] = period * self._counts[numbers[here]] + before[rest[here]]
        passes, within = np.divmod(nth, self._sizes[numbers])
        images = self._first_images[numbers]
        for number, order_of in enumerate(self._passes):
            of_set = np.flatnonzero(numbers == number)
            if not len(of_set):
                continue
            # Nearly always one; of a small set many.
            found, by_pass = _values(passes[of_set]), [of_set]
            if len(found) > 1:
                of_set = of_set[np.argsort(passes[of_set], kind="stable")]
                by_pass = np.split(of_set, np.searchsorted(passes[of_set], found[1:]))
            for one, turns in zip(found, by_pass, strict=True):
                images[turns] += order_of(one).records(within[turns])
        return images, passes

    def _make_period(self, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which set each place of a period takes, and how often it came before there, int64 [P] each."""
        generator = np.random.default_rng([_PERIOD_STREAM, self._seed, period])
        member = generator.permutation(np.repeat(np.arange(len(self._counts)), self._counts))
        before = np.empty_like(member)
        for number, count in enumerate(self._counts.tolist()):
            before[member == number] = np.arange(count)
        return member, before

    def _make_pass(self, number: int, one: int) -> Order:
        return self._order_of(int(self._sizes[number]), [_CHUNK_STREAM, self._seed, number, one])


def _values(numbers: NDArray[np.int64]) -> list[int]:
    """Return the different values, ascending; faster than sorting where there is one."""
    low, high = int(numbers.min()), int(numbers.max())
    values: list[int] = [low] if low == high else np.unique(numbers).tolist()
    return values
