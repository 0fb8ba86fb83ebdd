from __future__ import annotations

import numpy as np
import pytest
import torch

from lafs_ray.methods.mixup import MixupSchedule, mix, neighbors
from tests.golden_cases import load_case

CASE = load_case("f3_mixup")


@pytest.mark.parametrize("call", range(6))
def test_mix__recorded_batches(call: int) -> None:
    """`util/mixup_my.py`: the recorded images and dense labels, with its λ and reversed partner."""
    images, labels = (torch.from_numpy(CASE.inputs[f"{name}_{call}"]) for name in "xy")
    partner = torch.arange(len(labels)).flip(0)
    mixed, targets = mix(images, labels, float(CASE.inputs[f"lam_{call}"]), partner)
    tol = CASE.meta["tol"]
    np.testing.assert_allclose(mixed.numpy(), CASE.outputs[f"x_{call}"], rtol=0, atol=tol["x"])
    dense = torch.zeros(len(labels), CASE.meta["num_classes"])
    rows = torch.arange(len(labels))
    dense.index_put_((rows, targets.first), targets.share, accumulate=True)
    dense.index_put_((rows, targets.second), 1 - targets.share, accumulate=True)
    np.testing.assert_allclose(dense.numpy(), CASE.outputs[f"y_{call}"], rtol=0, atol=tol["y"])


def test_mix__recorded_shares_are_of_both_kinds() -> None:
    """The recorded batches are mixed and unmixed ones: the test above covers both."""
    shares = [float(CASE.inputs[f"lam_{call}"]) for call in range(6)]
    assert {share == 1.0 for share in shares} == {True, False}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_neighbors__do_not_depend_on_the_split_of_a_batch(parts: int) -> None:
    """A batch mixed in parts of an even size is the batch mixed as a whole, bit by bit."""
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    whole, targets = mix(images, labels, 0.3, neighbors(8, images.device))
    pieces = [
        mix(image, label, 0.3, neighbors(8 // parts, images.device))
        for image, label in zip(images.chunk(parts), labels.chunk(parts), strict=True)
    ]
    assert torch.equal(whole, torch.cat([mixed for mixed, _ in pieces]))
    assert torch.equal(targets.second, torch.cat([part.second for _, part in pieces]))
    assert targets.second.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_mixup_shares__probability_and_distribution() -> None:
    """Steps are mixed at the probability, with shares of Beta(α, α); a step's share is fixed."""
    shares = MixupSchedule(probability=0.25, alpha=0.2, seed=3)
    drawn = np.array([shares(step) for step in range(4000)])
    mixed = drawn[drawn < 1.0]
    # Three standard deviations of 4000 draws; Beta(0.2, 0.2) reaches 1.0 in float64 now and then.
    assert len(mixed) / 4000 == pytest.approx(0.25, abs=0.021)
    # Mean ½; variance 1 / (4 · (2α + 1)) = 0.179, within three standard errors of 1000 draws.
    assert mixed.mean() == pytest.approx(0.5, abs=0.045)
    assert mixed.var() == pytest.approx(0.179, abs=0.012)
    assert [shares(step) for step in range(50)] == drawn[:50].tolist()
    assert [MixupSchedule(0.25, 0.2, 4)(step) for step in range(50)] != drawn[:50].tolist()
    assert {MixupSchedule(0.0, 0.2, 3)(step) for step in range(50)} == {1.0}
