from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.transforms.random_erasing import erase_

COUNT, SIZE = 600, 40
KEYS = np.arange(COUNT)


def erased(
    probability: float = 0.5, area: tuple[float, float] = (0.02, 0.1), seed: int = 0, keys: NDArray[np.int64] = KEYS
) -> NDArray[np.bool_]:
    """Which pixels of white images turn black, [B, S, S]."""
    images = np.full((len(keys), SIZE, SIZE, 3), 255, dtype=np.uint8)
    zeros = np.zeros(len(keys), dtype=np.int64)
    erase_(images, probability, area, seed, epoch=zeros, shard=zeros, key=keys)
    assert set(np.unique(images)) <= {0, 255}
    black: NDArray[np.bool_] = (images == 0).all(axis=-1)
    assert np.array_equal(black, (images == 0).any(axis=-1))
    return black


def test_erase__probability_area_and_shape() -> None:
    """Half of the images lose one full rectangle of 2-10 % of their area, anywhere."""
    black = erased()
    is_erased = black.any(axis=(1, 2))
    # Three standard deviations of 600 draws.
    assert is_erased.mean() == pytest.approx(0.5, abs=0.062)
    for one in black[is_erased]:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        assert one.sum() == len(rows) * len(columns), "not a rectangle"
        assert len(rows) == rows[-1] - rows[0] + 1
        # Sides are rounded to pixels: of 1.7 px the least, so areas may be off by half of that.
        assert 0.01 < one.mean() < 0.12
        assert 0.2 < len(rows) / len(columns) < 5
    # Each pixel is erased in 3 % of the images: 18 times, so hardly one never.
    assert (black.any(axis=0)).mean() > 0.95


def test_erase__bounds_of_the_probability_and_of_the_area() -> None:
    """0 erases nothing, 1 every image, and a larger area larger rectangles."""
    assert not erased(0.0).any()
    assert erased(1.0).any(axis=(1, 2)).all()
    assert erased(1.0, (0.3, 0.4)).mean() > 3 * erased(1.0).mean()


def test_erase__depends_on_the_record_alone() -> None:
    """A record's rectangle is the same in any batch; another seed draws another."""
    whole = erased()
    assert np.array_equal(erased(keys=KEYS[50:60][::-1]), whole[50:60][::-1])
    assert not np.array_equal(erased(seed=1), whole)
