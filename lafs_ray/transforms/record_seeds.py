"""A generator for every record of a batch, as numpy's SeedSequence seeds it, without a SeedSequence for each.

`np.random.SeedSequence([seed, epoch, shard, key])` takes 5 µs, and as long again to be read by PCG64. Its hash is fixed
(numpy keeps the streams of all versions equal), so that of a whole batch is computed at once: 0.1 ms and 1 µs a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

# Of numpy/random/bit_generator.pyx, where they are from O'Neill's seed_seq_fe.
_POOL = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_WORD = 1 << 32
_FEW = 10

Words = NDArray[np.uint32]


def record_generators(seed: int, *parts: NDArray[np.integer[Any]]) -> Iterator[np.random.Generator]:
    """Yield for each record `Generator(PCG64(SeedSequence([seed, part, part, part])))`.

    Args:
        seed: of the run, ≥ 0.
        parts: three arrays [B], ≥ 0.
    """
    assert len(parts) == _POOL - 1, len(parts)
    count = len(parts[0])
    if count < _FEW or seed >= _WORD or any(int(part.max()) >= _WORD for part in parts):
        # A larger number is two words, and the pool is mixed once more.
        for record in zip(*(part.tolist() for part in parts), strict=True):
            yield np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *record])))
        return
    words = [np.full(count, seed, dtype=np.uint32), *(part.astype(np.uint32) for part in parts)]
    given = _Given()
    for given.state in _states(words):
        # numpy takes any ISeedSequence; its stubs say less.
        yield np.random.Generator(np.random.PCG64(cast("np.random.SeedSequence", given)))


class _Given:
    """What PCG64 asks for its state."""

    state: NDArray[np.uint64]

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        """Return the state of the record at hand."""
        assert (n_words, dtype) == (_POOL, np.uint64), (n_words, dtype)
        return self.state


ISeedSequence.register(_Given)


def _states(words: Sequence[Words]) -> NDArray[np.uint64]:
    """Return [B, 4], `SeedSequence(words).generate_state(4, np.uint64)` of each record."""
    constants = _constants(_INIT_A, _MULT_A, _POOL * _POOL)
    pool = [_hashed(each, *next(constants)) for each in words]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                mixed = _MIX_LEFT * pool[target] - _MIX_RIGHT * _hashed(pool[source], *next(constants))
                pool[target] = mixed ^ (mixed >> _SHIFT)
    constants = _constants(_INIT_B, _MULT_B, 2 * _POOL)
    halves = [_hashed(pool[number % _POOL], *pair) for number, pair in enumerate(constants)]
    return np.stack(halves, axis=1).astype("<u4").view("<u8").astype(np.uint64)


def _constants(first: int, factor: int, count: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """Yield what a number is combined with before it is multiplied, and multiplied with."""
    for _ in range(count):
        following = first * factor % _WORD
        yield np.uint32(first), np.uint32(following)
        first = following


def _hashed(value: Words, mask: np.uint32, factor: np.uint32) -> Words:
    hashed: Words = (value ^ mask) * factor
    hashed ^= hashed >> _SHIFT
    return hashed
