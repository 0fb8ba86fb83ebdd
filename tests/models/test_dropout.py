"""Dropout and stochastic depth: rates, means, gradients, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lafs_ray.models.dropout import StochasticDepth, add_dropped, drop_path, dropout
from lafs_ray.models.fvit import FViT, FViTSize

COUNT = 1_000_003
BYTES = torch.float32, torch.bfloat16, torch.float64


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
def test_dropout__rate_and_scale(rate: float, dtype: torch.dtype) -> None:
    """Numbers are dropped at the rate, and the others scaled by 1/(1 - rate)."""
    torch.manual_seed(0)
    out = dropout(torch.ones(COUNT, dtype=dtype), rate, training=True)
    kept = out[out != 0]
    # Rates are multiples of 2^-16; bfloat16 has 8 bits.
    tolerance = 2**-8 if dtype == torch.bfloat16 else 2**-15
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=tolerance, atol=0)
    # Five standard errors.
    assert 1 - len(kept) / COUNT == pytest.approx(rate, abs=5 * (rate * (1 - rate) / COUNT) ** 0.5 + 2**-17)


def test_dropout__no_pattern() -> None:
    """Whether a number is dropped says nothing about its neighbors, nor about the next mask."""
    torch.manual_seed(0)
    first, second = (dropout(torch.ones(COUNT), 0.5, training=True) == 0 for _ in range(2))
    for one, other in (
        (first[1:], first[:-1]),
        (first[4:], first[:-4]),
        (first[1024:], first[:-1024]),
        (first, second),
    ):
        # Five standard errors of a share of one half.
        assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.0025)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_dropout__off(rate: float, training: bool) -> None:
    """At rate 0 and in evaluation numbers pass untouched."""
    x = torch.randn(4, 2)
    assert dropout(x, rate, training=training) is x
    assert torch.equal(add_dropped(x, x, rate, training=training), x + x)


def test_dropout__everything() -> None:
    """At rate 1 nothing is left, and nothing is infinite."""
    assert torch.equal(dropout(torch.ones(9), 1.0, training=True), torch.zeros(9))


def test_dropout__seed() -> None:
    """Torch's seed decides: the same gives the same mask, another gives another."""
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(dropout(torch.ones(1000), 0.5, training=True))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", BYTES)
def test_add_dropped__equals_a_sum(dtype: torch.dtype) -> None:
    """The fused sum and its gradients are those of a residual plus dropout."""
    residual, branch = (torch.randn(3, 5, 7, dtype=dtype, requires_grad=True) for _ in range(2))
    grad = torch.randn(3, 5, 7, dtype=dtype)
    found = []
    for fused in (True, False):
        torch.manual_seed(2)
        out = (
            add_dropped(residual, branch, 0.3, training=True)
            if fused
            else residual + dropout(branch, 0.3, training=True)
        )
        found.append((out, *torch.autograd.grad(out, (residual, branch), grad)))
    # The fused product and sum round once, and apart twice.
    torch.testing.assert_close(found[0], found[1], rtol=torch.finfo(dtype).eps * 2, atol=torch.finfo(dtype).eps * 4)


def test_stochastic_depth__per_sample() -> None:
    """Samples are dropped whole and one by one, at the rate, the rest scaled so that the mean stays."""
    torch.manual_seed(0)
    depth = StochasticDepth(2, 0.2, per_sample=True)
    factors = depth(torch.ones(20_000, 2, 3))[1]
    assert factors is not None
    out = drop_path(torch.ones(20_000, 2, 3), factors)
    first = out[:, 0, 0]
    assert torch.equal(out, first[:, None, None].expand_as(out))
    assert set(first.unique().tolist()) == {0.0, 1.25}
    # Five standard errors of a share of 0.2 in 20,000 draws.
    assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize(("batch", "kept"), [(1, 1), (4, 4), (8, 7), (32, 29), (100, 90)])
def test_stochastic_depth__fixed_number(batch: int, kept: int) -> None:
    """A branch keeps round(B·(1 - rate)) samples, all different, each as often as any other."""
    torch.manual_seed(0)
    counts = torch.zeros(batch)
    rounds = 2000
    for _ in range(rounds // 4):
        for samples in StochasticDepth(4, 0.1, per_sample=False)(torch.ones(batch, 2, 3)):
            chosen = torch.arange(batch) if samples is None else samples.rows
            assert len(chosen.unique()) == len(chosen) == kept
            counts[chosen] += 1
    # Five standard errors of a share of kept / batch.
    share = kept / batch
    assert ((counts / rounds - share).abs() <= 5 * (share * (1 - share) / rounds) ** 0.5 + 1e-6).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_stochastic_depth__expectation_in_a_network(per_sample: bool) -> None:
    """With linear branches the mean output over draws is the output without stochastic depth."""
    size = FViTSize(width=8, depth=1, heads=1, head_dim=8, mlp_width=8)
    torch.manual_seed(0)
    model = FViT(size, 3, 4, dropout=0.0, drop_path=0.25, drop_path_per_sample=per_sample).double()
    attention, mlp = model.transformer.layers[0]
    # Only the MLP's last bias is left of both branches: then the block adds a constant.
    with torch.no_grad():
        for parameter in (*attention.parameters(), *mlp.parameters()):
            parameter.zero_()
        mlp.fn.fn.net[3].bias.fill_(1.0)
    tokens = torch.randn(8, 3, 4, dtype=torch.float64)

    def block_outputs() -> Tensor:
        return model.transformer(model.with_positions(tokens))

    with torch.no_grad():
        mean = torch.stack([block_outputs() for _ in range(2000)]).mean(0)
        expected = model.eval().transformer(model.with_positions(tokens))
    # A sample's bias is 1/0.75 in 3 of 4 draws: standard deviation 0.58, five standard errors of 2,000 draws.
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.065)


def test_stochastic_depth__off() -> None:
    """At rate 0 and in evaluation nothing is drawn."""
    x = torch.ones(4, 2)
    assert StochasticDepth(2, 0.0, per_sample=False)(x) == [None, None]
    assert StochasticDepth(2, 0.5, per_sample=True).eval()(x) == [None, None]
