"""Classes that Partial FC samples for a step."""

from __future__ import annotations

import math

import pytest
import torch

from lafs_ray.models.partial_fc import PartialFC


@pytest.mark.parametrize(("rate", "count"), [(0.01, 1), (0.07, 7), (0.5, 50), (0.505, 51), (1.0, 100)])
def test_sample__has_the_positives_and_a_count_that_is_exact(rate: float, count: int) -> None:
    """⌈r · classes⌉ classes, all of the batch's own among them; more where these alone are more."""
    for num_present in (0, 1, 7, 60):
        generator = torch.Generator().manual_seed(num_present)
        present = torch.randperm(100, generator=generator)[:num_present]
        head = PartialFC(2, 200, sample_rate=rate, rank=0, num_ranks=2)
        # Classes of the other rank, and some classes twice, make no difference.
        sample = head.sample(torch.cat([present, present[:3], torch.arange(100, 200)])[:, None])
        assert len(sample) == max(count, num_present)
        assert torch.equal(sample, sample.unique())
        assert torch.isin(present, sample).all()


def test_sample__is_a_function_of_seed_step_and_rank() -> None:
    """Drawn again it is the same, whatever torch's own generator does, which it leaves alone."""

    def draw(seed: int = 0, step: int = 0, rank: int = 0) -> list[int]:
        head = PartialFC(2, 4000, sample_rate=0.1, seed=seed, rank=rank, num_ranks=2)
        head.begin_step(step)
        return head.sample(torch.tensor([[5], [2005]])).tolist()

    torch.manual_seed(0)
    first = draw()
    assert draw() == first
    others = [draw(seed=1), draw(step=1), draw(rank=1)]
    assert all(len(set(first) & set(other)) < 100 for other in others), "a tenth by chance: 20"
    head = PartialFC(2, 4000, sample_rate=0.1)
    state = torch.get_rng_state()
    head.sample(torch.tensor([[5]]))
    assert torch.equal(torch.get_rng_state(), state)


def test_sample__takes_every_other_class_equally_often() -> None:
    """Over many steps the classes that are not in the batch come with equal frequency."""
    head = PartialFC(2, 20, sample_rate=0.25)
    counts = torch.zeros(20)
    for step in range(2000):
        head.begin_step(step)
        counts[head.sample(torch.tensor([[3], [11]]))] += 1
    assert counts[[3, 11]].tolist() == [2000, 2000]
    others = counts[[c for c in range(20) if c not in (3, 11)]]
    # Three of 18 places: 333 ± 17; five deviations.
    assert (others - 2000 / 6).abs().max() < 5 * math.sqrt(2000 * 5 / 36)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradient__needs_no_sorting(micro_batches: int) -> None:
    """A step's sparse gradient is known to be coalesced, and is what coalescing would make of it."""
    head = PartialFC(4, 50, sample_rate=0.2, seed=1)
    head.begin_step(3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(micro_batches):
        loss, _ = head.loss(torch.randn(6, 4, generator=generator), torch.randint(50, (6,), generator=generator))
        loss.backward()
    gradient = head.weight.grad
    assert gradient is not None
    assert gradient.is_coalesced() or micro_batches == 2
    rows = gradient.coalesce().indices()[0]
    assert (rows.diff() > 0).all()
    parts = gradient._indices(), gradient._values()
    unmarked = torch.sparse_coo_tensor(*parts, gradient.shape, check_invariants=False)
    assert torch.equal(unmarked.to_dense(), gradient.to_dense())
