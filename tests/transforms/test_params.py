from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lafs_ray.config.finetune import Augmentation
from lafs_ray.training.tasks.finetune import single_view_settings
from lafs_ray.transforms.params import ViewParams, ViewSettings, sample_view_params, smallest
from tests.transforms.faces import view_settings

SETTINGS = view_settings()


def sample(settings: ViewSettings, count: int, *, seed: int = 0, epoch: int = 0) -> ViewParams:
    zeros = np.zeros(count, dtype=np.int64)
    return sample_view_params(settings, seed, zeros + epoch, zeros, np.arange(count))


def assert_equal(first: ViewParams, second: ViewParams) -> None:
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_view_params__of_a_record_in_any_batch() -> None:
    """A record's params depend on (seed, epoch, shard, key) alone."""
    epoch, shard, key = np.array([3, 0, 7]), np.array([1, 1, 0]), np.array([5, 2**33, 5])
    together = sample_view_params(SETTINGS, 9, epoch, shard, key)
    for row in range(3):
        one = slice(row, row + 1)
        assert_equal(together.images(one), sample_view_params(SETTINGS, 9, epoch[one], shard[one], key[one]))


@pytest.mark.parametrize("changed", ["seed", "epoch", "shard", "key"])
def test_view_params__with_one_part_of_the_name_changed(changed: str) -> None:
    """Seed (0 and 1 included), epoch, shard and key each change the params."""
    parts = {"seed": 0, "epoch": 0, "shard": 0, "key": 0}

    def named(values: dict[str, int]) -> ViewParams:
        epoch, shard, key = (np.array([values[name]]) for name in ("epoch", "shard", "key"))
        return sample_view_params(SETTINGS, values["seed"], epoch, shard, key)

    first, second = named(parts), named(parts | {changed: 1})
    assert not np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.landmark_noise_px, second.landmark_noise_px)
    assert not np.array_equal(first.local_indices, second.local_indices)


def test_view_params__opposite_flips() -> None:
    """The second global view is mirrored where the first is not, and nothing else changes."""
    plain, opposite = sample(SETTINGS, 200), sample(replace(SETTINGS, opposite_flips=True), 200)
    assert 60 < opposite.flips[:, 0].sum() < 140
    np.testing.assert_array_equal(opposite.flips[:, 1], ~opposite.flips[:, 0])
    rest = replace(opposite, flips=plain.flips)
    assert_equal(rest, plain)
    others = [0, *range(2, plain.flips.shape[1])]
    np.testing.assert_array_equal(opposite.flips[:, others], plain.flips[:, others])


def within_four_sigma(hits: np.ndarray, probability: float) -> bool:
    deviation = math.sqrt(probability * (1 - probability) / hits.size)
    return abs(hits.mean() - probability) <= 4 * deviation


def test_view_params__have_the_probabilities_of_the_paper() -> None:
    """Frequencies lie within four standard deviations of the settings."""
    params = sample(SETTINGS, 1000)
    assert within_four_sigma(params.flips, 0.5)
    assert within_four_sigma(params.jitters, 0.8)
    assert within_four_sigma(params.grays, 0.2)
    assert (params.blur_sigma_px[:, 0] > 0).all()
    assert within_four_sigma(params.blur_sigma_px[:, 1] > 0, 0.1)
    assert within_four_sigma(params.blur_sigma_px[:, 2:] > 0, 0.5)
    assert within_four_sigma(params.solarizes[:, 1], 0.2)
    assert not params.solarizes[:, [0, *range(2, 10)]].any()
    for operation in range(4):
        for position in range(4):
            assert within_four_sigma(params.jitter_order[..., position] == operation, 0.25)
    noise = params.landmark_noise_px
    # Mean and variance of count normal numbers have deviations sd/√count and sd²·√(2/count).
    assert abs(noise.mean()) < 4 * 5 / math.sqrt(noise.size)
    assert abs(noise.var() - 25) < 4 * 25 * math.sqrt(2 / noise.size)


def test_view_params__stay_in_their_ranges() -> None:
    """Crops, factors and blur lie in the ranges of the settings."""
    params = sample(SETTINGS, 500)
    top, left, height, width = (params.boxes[..., side].astype(float) for side in range(4))
    assert ((top >= 0) & (left >= 0) & (top + height <= 112) & (left + width <= 112)).all()
    # Sides are rounded to pixels: half a pixel on each of 70 or more.
    assert ((height * width > 0.4 * 112**2 * 0.985) & (height * width <= 112**2)).all()
    assert ((width / height > 3 / 4 * 0.985) & (width / height < 4 / 3 * 1.015)).all()
    low = params.jitter_factors.min(axis=(0, 1))
    high = params.jitter_factors.max(axis=(0, 1))
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8, -0.1], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2, 0.1], atol=0.01)
    sigma = params.blur_sigma_px[params.blur_sigma_px > 0]
    assert sigma.min() >= 0.1
    assert sigma.max() <= 2


def test_crop__of_local_views_has_its_own_area() -> None:
    """Local views may cover another share of the image than global ones."""
    boxes = sample(replace(SETTINGS, local_crop_area=(0.05, 0.3)), 100).boxes
    area = boxes[..., 2:].prod(axis=-1) / 112**2
    # Sides are rounded to pixels, half a pixel on each of 22 or more.
    assert area[:, :2].min() > 0.4 * 0.985
    assert area[:, 2:].max() < 0.3 * 1.02
    assert area[:, 2:].min() > 0.05 * 0.95


def test_crop__is_distributed_as_torchvision_draws_it() -> None:
    """Means of the four sides agree with torchvision's RandomResizedCrop within 4.5 sigma."""
    import torch

    from lafs_ray.compat import import_torchvision

    import_torchvision()
    from torchvision.transforms import RandomResizedCrop

    image = torch.zeros(1, 112, 112)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = np.array([RandomResizedCrop.get_params(image, [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = sample(SETTINGS, 2000).boxes.reshape(-1, 4)
    deviation = np.sqrt(reference.var(axis=0) / len(reference) + ours.var(axis=0) / len(ours))
    assert (np.abs(ours.mean(axis=0) - reference.mean(axis=0)) < 4.5 * deviation).all()


@pytest.mark.parametrize(
    ("aspect", "box"), [((1.0, 1.0), (0, 0, 112, 112)), ((2.0, 2.5), (28, 0, 56, 112)), ((0.2, 0.5), (0, 28, 112, 56))]
)
def test_crop__where_no_try_fits(aspect: tuple[float, float], box: tuple[int, ...]) -> None:
    """The fallback is the largest central crop of allowed aspect."""
    area = (1.5, 2.0)
    settings = replace(SETTINGS, crop_area=area, local_crop_area=area, crop_aspect=aspect)
    boxes = sample(settings, 2).boxes
    np.testing.assert_array_equal(boxes, np.broadcast_to(box, boxes.shape))


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_local_indices__with_and_without_replacement(replacement: bool, shuffle: bool) -> None:
    """Landmarks are drawn uniformly; twice only with replacement; ascending unless shuffled."""
    settings = replace(SETTINGS, replacement=replacement, shuffle=shuffle)
    indices = sample(settings, 300).local_indices
    assert indices.shape == (300, 8, 36)
    rows = indices.reshape(-1, 36)
    assert any(len(set(row)) < 36 for row in rows.tolist()) == replacement
    assert (np.diff(rows, axis=1) >= 0).all() == (not shuffle)
    counts = np.bincount(indices.reshape(-1), minlength=196)
    assert len(counts) == 196
    expected = indices.size / 196
    # 196 counts at once: five deviations of a count, smaller still without replacement.
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_grid__draws_no_landmarks() -> None:
    """Without landmarks there is neither noise nor choice; local views are patches of a square."""
    settings = view_settings(source="grid")
    params = sample(settings, 2)
    assert params.landmark_noise_px.size == 0
    assert params.local_indices.size == 0
    assert settings.local_size == 48


def test_single_view_settings__sample_one_mild_view() -> None:
    """Supervised training sees one view of at least 90 % of the image, without blur or gray."""
    params = sample(single_view_settings(Augmentation()), 200)
    assert params.boxes.shape == (200, 1, 4)
    # Sides are rounded to pixels, half a pixel on each of about 106.
    assert params.boxes[..., 2:].prod(axis=-1).min() > 0.9 * 112**2 * 0.99
    assert not params.grays.any()
    assert not params.solarizes.any()
    assert not params.blur_sigma_px.any()
    assert params.jitters.all()


@pytest.mark.parametrize("length", [196, 300])
@pytest.mark.parametrize("count", [1, 36, 195, 196])
def test_smallest__are_the_first_of_a_stable_order(count: int, length: int) -> None:
    """Also where equal numbers are among them, or one of them is just outside; keys of 64 bits as those of 32."""
    numbers = np.random.default_rng(0).random((40, 5, length), dtype=np.float32)
    numbers[3, 2] = np.floor(numbers[3, 2] * 8) / 8
    numbers[7] = 0.5
    expected = np.argsort(numbers, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(smallest(numbers, count), expected)
