"""Global and local views through the transformer as one list of tokens: what two passes compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.methods.lafs import LafsNetwork
from lafs_ray.models import token_sets
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.models.token_sets import can_encode_together, encode_together

SIZE = FViTSize(width=48, depth=3, heads=2, head_dim=16, mlp_width=64)


def network(drop_path: float = 0.0, dropout: float = 0.0, *, per_sample: bool = False) -> FViT:
    torch.manual_seed(0)
    size = {"num_tokens": 16, "token_dim": 12}
    return FViT(SIZE, **size, dropout=dropout, drop_path=drop_path, drop_path_per_sample=per_sample)


def sets(rows: tuple[int, int] = (6, 20)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, n, 12, generator=generator) for count, n in zip(rows, (16, 4), strict=True)]


def result(fvit: FViT, embed: Callable[[], Tensor]) -> list[Tensor]:
    """Embeddings and the gradients of all parameters, of the same draws."""
    torch.manual_seed(2)
    fvit.zero_grad()
    with gpu_form_everywhere():
        found = embed()
        (found * torch.linspace(-1, 1, found.numel()).view_as(found).to(found)).sum().backward()
    gradients = [each.grad for each in fvit.parameters()]
    return [found.detach(), *(each for each in gradients if each is not None)]


@pytest.mark.parametrize("recompute", [False, True])
# With two rows of the first set all are kept: nothing is dropped there.
@pytest.mark.parametrize(("drop_path", "rows"), [(0.0, (6, 20)), (0.3, (6, 20)), (0.2, (2, 20))])
def test_encode_together__is_two_passes(drop_path: float, rows: tuple[int, int], recompute: bool) -> None:
    """Embeddings and gradients, with stochastic depth and with activations computed again."""
    fvit = network(drop_path).double()
    fvit.transformer.recompute = recompute
    given = [tokens.double() for tokens in sets(rows)]
    expected = result(fvit, lambda: torch.cat([fvit(tokens) for tokens in given]))
    found = result(fvit, lambda: encode_together(fvit, given))
    assert len(found) == len(expected) == 1 + len(list(fvit.parameters()))
    for one, other in zip(found, expected, strict=True):
        # Factors of stochastic depth are float32.
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_encode_together__under_autocast() -> None:
    """One bfloat16 gradient of each weight in place of the sum of two: some 2^-9 of it apart."""
    fvit = network(0.3)
    given = sets()
    with torch.autocast("cpu", torch.bfloat16):
        expected = result(fvit, lambda: torch.cat([fvit(tokens) for tokens in given]))
        found = result(fvit, lambda: encode_together(fvit, given))
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 8e-3 * other.norm()


def test_encode_together__with_dropout() -> None:
    """Masks are others than in two passes, and the same again for the same seed."""
    fvit = network(0.3, dropout=0.5)
    given = sets()
    one, again = (result(fvit, lambda: encode_together(fvit, given)) for _ in range(2))
    passes = result(fvit, lambda: torch.cat([fvit(tokens) for tokens in given]))
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    assert not torch.equal(one[0], passes[0])


def test_embed__takes_one_pass_only_where_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form for GPUs, with blocks of ours that are not compiled and what is dropped by count."""
    calls: list[int] = []

    def noted(fvit: FViT, given: list[Tensor]) -> Tensor:
        calls.append(len(given))
        return encode_together(fvit, given)

    monkeypatch.setattr("lafs_ray.methods.lafs.encode_together", noted)
    student = LafsNetwork(network(), DINOHead(SIZE.width, 8, hidden_dim=8, bottleneck_dim=4))
    student.embed(sets())
    assert calls == []
    with gpu_form_everywhere():
        student.embed(sets())
        student.embed(sets()[:1])
    assert calls == [2]
    assert can_encode_together(network(0.1))
    assert not can_encode_together(network(0.1, per_sample=True))
    frozen = network()
    frozen.transformer.layers[0].eval()
    assert not can_encode_together(frozen)
    compiled = network()
    compiled.transformer.layers[0].compile(backend="eager")
    assert not can_encode_together(compiled)
    monkeypatch.setattr(token_sets, "is_plain_block", lambda _: False)
    assert not can_encode_together(network())
