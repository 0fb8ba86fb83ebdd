"""KoLeo against its definition, its gradient, and what it changes in a step."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

from lafs_ray.methods.koleo import koleo_loss
from lafs_ray.models.placement import gpu_form_everywhere
from tests.methods.test_lafs import VALUES, small_batch, small_lafs


def test_koleo__is_its_definition() -> None:
    """In NumPy, row by row, in float64: each view by itself."""
    rows = np.random.default_rng(0).normal(size=(10, 3))
    expected = 0.0
    for view in (rows[:5], rows[5:]):
        unit = view / np.linalg.norm(view, axis=1, keepdims=True)
        for i, row in enumerate(unit):
            nearest = max((j for j in range(5) if j != i), key=lambda j: row @ unit[j])
            expected -= math.log(np.linalg.norm(row - unit[nearest])) / 5
    # The 1e-8 beside distances of a tenth and more.
    assert float(koleo_loss(torch.from_numpy(rows), num_views=2)) == pytest.approx(expected, rel=1e-6)


def test_koleo__spreads_each_view_and_not_views_of_one_image() -> None:
    """Its gradient moves near embeddings apart; two views of an image may be equal."""
    one = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.1]], dtype=torch.float64)
    both = torch.cat([one, one]).requires_grad_()
    (gradient,) = torch.autograd.grad(koleo_loss(both, num_views=2), both)
    assert torch.equal(gradient[:3], gradient[3:])
    moved = (both - 0.1 * gradient)[:3].detach()
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(moved[0], moved[1], dim=0) < 0.79 < cosine(one[0], one[1], dim=0)
    assert torch.autograd.gradcheck(lambda rows: koleo_loss(rows, num_views=2), (both,))


def test_koleo__leaves_partners_together() -> None:
    """By its definition: the nearest embedding of a partner, an image of the same person, is passed over."""
    rows = np.random.default_rng(1).normal(size=(12, 3))
    rows[[0, 6]] = rows[[1, 7]] + 1e-3
    partners = [1, 0, 2, 3, 5, 4]
    expected = 0.0
    for view in (rows[:6], rows[6:]):
        unit = view / np.linalg.norm(view, axis=1, keepdims=True)
        for i, row in enumerate(unit):
            nearest = max((j for j in range(6) if j not in (i, partners[i])), key=lambda j: row @ unit[j])
            expected -= math.log(np.linalg.norm(row - unit[nearest])) / 6
    found = koleo_loss(torch.from_numpy(rows), num_views=2, partners=torch.tensor(partners))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(koleo_loss(torch.from_numpy(rows), num_views=2)) > float(found) + 1
    alone = koleo_loss(torch.from_numpy(rows), num_views=2, partners=torch.arange(6))
    assert torch.equal(alone, koleo_loss(torch.from_numpy(rows), num_views=2))


def test_koleo__of_equal_embeddings_is_finite() -> None:
    """A collapsed network's, in float32 and of a length of zero, with its gradient."""
    for rows in (torch.ones(4, 3), torch.zeros(4, 3)):
        loss = koleo_loss(rows.requires_grad_(), num_views=2)
        loss.backward()
        assert loss.isfinite()
        assert rows.grad is not None
        assert rows.grad.isfinite().all()


def test_koleo__is_float32_under_autocast() -> None:
    """Neighbors of embeddings that bfloat16 cannot tell apart are found, and their distance."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [1.0, 2.5e-3], [1.0, 0.0], [1.0, 1e-3], [1.0, 2.5e-3]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(rows, num_views=2)
    assert loss.dtype == torch.float32
    # Distances of 1e-3, 1e-3 and 1.5e-3; float32 keeps them to 1e-4.
    assert float(loss) == pytest.approx(-2 * (2 * math.log(1e-3) + math.log(1.5e-3)) / 3, rel=1e-4)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_step__adds_koleo_of_the_global_views(on_gpu: bool) -> None:
    """The loss is that without it and the weighted term of the student's embeddings; the metric is the term.

    Also in the form for GPUs, where local views are encoded beside the global ones, and in a step without a report.
    """
    plain, spread = small_lafs(), small_lafs(koleo=0.5)
    spread.begin_step(0, reports=not on_gpu)
    batch = small_batch(4)
    with gpu_form_everywhere() if on_gpu else contextlib.nullcontext():
        without, metrics = plain.loss(plain.trainable, batch, VALUES)
        loss, with_metrics = spread.loss(spread.trainable, batch, VALUES)
    embeddings = plain.trainable.embed([batch["global_tokens"].transpose(0, 1).flatten(0, 1)])
    expected = koleo_loss(embeddings, num_views=2)
    assert "koleo" not in metrics
    # float64; other shapes of products round differently.
    assert with_metrics["koleo"].item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss.item() == pytest.approx((without + 0.5 * expected).item(), rel=1e-9)
    assert with_metrics["loss"].item() == loss.item()
