from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.transforms.randaugment import RandAugment
from tests.training.faces import face_jpegs, pixels_of

IMAGES = np.stack([pixels_of(jpeg) for jpeg in face_jpegs(16)])
ZEROS, KEYS = np.zeros(16, dtype=np.int64), np.arange(16)


def augmented(magnitude: int = 2, seed: int = 0, rows: slice = slice(None), epoch: int = 0) -> NDArray[np.uint8]:
    return RandAugment(magnitude, seed)(IMAGES[rows], epoch + ZEROS[rows], ZEROS[rows], KEYS[rows])


def test_rand_augment__of_a_record_in_any_batch() -> None:
    """What becomes of a record depends on neither its batch nor its place in it, bit by bit."""
    whole = augmented()
    assert np.array_equal(augmented(rows=slice(5, 9)), whole[5:9])
    assert np.array_equal(augmented(rows=slice(None, None, -1)), whole[::-1])


def test_rand_augment__seed_epoch_and_magnitude_count() -> None:
    """Another seed, epoch or magnitude augments otherwise; the images given stay as they are."""
    before = IMAGES.copy()
    base = augmented()
    for other in (augmented(seed=1), augmented(epoch=1), augmented(magnitude=9)):
        assert not np.array_equal(other, base)
    assert np.array_equal(IMAGES, before)


def test_rand_augment__strength() -> None:
    """Two operations at p = 0.5 leave a quarter of the images alone; magnitude strengthens them."""
    count = 400
    images = np.repeat(IMAGES[:1], count, axis=0)
    records = (np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count))
    changes = {}
    for magnitude in (1, 9):
        after = RandAugment(magnitude, 0)(images, *records).astype(int)
        changes[magnitude] = np.abs(after - images).mean(axis=(1, 2, 3))
    # Some operations also do nothing to some image (a sharpness of 1, a turn of 0).
    untouched = (changes[1] == 0).mean()
    assert 0.25 - 3 * 0.022 < untouched < 0.45
    assert changes[9].mean() > 1.2 * changes[1].mean()


def test_rand_augment__leaves_the_global_generators_alone() -> None:
    """Whoever else draws from Python's or NumPy's generator sees no difference, nor matters."""
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = augmented()
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert np.array_equal(augmented(), first)


def test_rand_augment__operations() -> None:
    """All 15 operations of increasing severity, two at a time, as the reference draws them."""
    transform: Any = RandAugment(1, 0).transform
    assert len(transform.ops) == 15
    assert transform.num_layers == 2
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in transform.ops} == {(0.5, 1, 0.5)}
