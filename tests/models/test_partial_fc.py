from __future__ import annotations

import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lafs_ray.models import partial_fc
from lafs_ray.models.margin import MarginKind, MixedLabels, with_margin
from lafs_ray.models.partial_fc import PartialFC, shard_bounds
from tests.models.margin_softmax import MarginSoftmax
from tests.ranks import on_ranks

# 11 classes on 2 ranks are 6 and 5, on 3 ranks 4, 4 and 3; 12 rows fit all.
CLASSES, ROWS, FEATURES, WIDTH = 11, 12, 5, 7
KINDS: list[MarginKind] = ["cosface", "arcface"]
TARGETS = ["labels", "labels of rank 0", "mixed"]
CASES = list(itertools.product(KINDS, TARGETS))
RANKS = [1, 2, 3]
# A float32 sum in another order, times the scale of 64; of a tensor's largest entry.
TOLERANCE = 2e-6


def features() -> Tensor:
    return torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1))


def targets(name: str) -> Tensor | MixedLabels:
    generator = torch.Generator().manual_seed(2)
    highest = 3 if name == "labels of rank 0" else CLASSES
    first, second = torch.randint(highest, (2, ROWS), generator=generator)
    if name != "mixed":
        return first
    share = torch.rand(ROWS, generator=generator)
    second[0], share[1], share[2] = first[0], 1.0, 0.0
    return MixedLabels(first, second, share)


def rows_of(values: Tensor | MixedLabels, part: Any) -> Tensor | MixedLabels:
    if isinstance(values, MixedLabels):
        return MixedLabels(values.first[part], values.second[part], values.share[part])
    return values[part]


def as_soft(values: Tensor | MixedLabels, num_classes: int) -> Tensor:
    """The definition of a target: shares of classes, added where both are one."""
    if isinstance(values, Tensor):
        return F.one_hot(values, num_classes).float()
    soft = torch.zeros(len(values.first), num_classes)
    for row, (first, second, share) in enumerate(zip(values.first, values.second, values.share, strict=True)):
        soft[row, first] += share
        soft[row, second] += 1 - share
    return soft


def head_of(kind: MarginKind, rank: int = 0, num_ranks: int = 1, **settings: Any) -> PartialFC:
    torch.manual_seed(3)
    return PartialFC(WIDTH, CLASSES, margin=0.5, kind=kind, rank=rank, num_ranks=num_ranks, **settings)


def backbone() -> nn.Module:
    torch.manual_seed(4)
    return nn.Linear(FEATURES, WIDTH)


def one_case(rank: int, num_ranks: int, case: tuple[MarginKind, str], rate: float) -> dict[str, Any]:
    """Two micro-batches of this rank's rows, as the training loop runs them."""
    kind, name = case
    head = head_of(kind, rank, num_ranks, sample_rate=rate, seed=5)
    head.begin_step(6)
    network = backbone()
    out: dict[str, Any] = {"loss": 0.0, "accuracy": 0.0}
    each = ROWS // num_ranks
    for micro in range(2):
        size = each // 2
        part = slice(rank * each + micro * size, rank * each + (micro + 1) * size)
        loss, is_nearest = head.loss(network(features()[part]), rows_of(targets(name), part))
        assert is_nearest.dtype == torch.bool
        (loss / 2).backward()
        out["loss"] += loss.item() / 2
        out["accuracy"] += is_nearest.float().mean().item() / 2
    gradient = head.weight.grad
    assert gradient is not None
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        out["sample"] = gradient.indices()[0] + head.start
        gradient = gradient.to_dense()
    out["centers"] = head.gather_rows(gradient)
    out["backbone"] = [averaged(each.grad, num_ranks) for each in network.parameters()]
    return out


def averaged(gradient: Tensor | None, num_ranks: int) -> Tensor:
    """What DDP makes of a gradient; DDP itself takes five seconds to import."""
    assert gradient is not None
    if num_ranks > 1:
        dist.all_reduce(gradient)
    return gradient / num_ranks


def all_cases(rank: int, num_ranks: int) -> dict[str, Any]:
    with mock.patch.object(partial_fc, "_BLOCK_ROWS", 2):
        head = head_of("cosface", rank, num_ranks)
        rows = head.gather_rows(head.weight)
    cases = {
        f"{kind} {name} {rate}": one_case(rank, num_ranks, (kind, name), rate)
        for kind, name in CASES
        for rate in (1.0, 0.4)
    }
    return {"rows": rows, **cases}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Each case on one process without torch.distributed, and on two and three ranks."""
    two, three = on_ranks(tmp_path_factory.mktemp("ranks"), (2, all_cases, ()), (3, all_cases, ()))
    return {1: [all_cases(0, 1)], 2: two, 3: three}


def dense(case: tuple[MarginKind, str], classes: list[Tensor] | None = None) -> dict[str, Any]:
    """A softmax of soft targets by definition, over all classes or over each row's own list."""
    kind, name = case
    torch.manual_seed(3)
    head = MarginSoftmax(WIDTH, CLASSES, margin=0.5, kind=kind)
    network = backbone()
    wanted = as_soft(targets(name), CLASSES)
    kept = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    if classes is not None:
        for row, present in enumerate(classes):
            kept[row] = torch.isin(torch.arange(CLASSES), present)
    embeddings = network(features())
    margined = with_margin(head.cosines(embeddings), head.margin * wanted, kind)
    logits = (head.scale * margined).masked_fill(~kept, -math.inf)
    losses = logits.logsumexp(dim=1) - (wanted * logits.masked_fill(~kept, 0.0)).sum(dim=1)
    losses.mean().backward()
    cosines = F.cosine_similarity(embeddings.unsqueeze(1), head.weight, dim=-1)
    nearest = cosines.masked_fill(~kept, -math.inf).argmax(dim=1)
    is_nearest = nearest == wanted.argmax(dim=1)
    return {
        "loss": losses.mean().item(),
        "accuracy": is_nearest.float().mean().item(),
        "centers": head.weight.grad,
        "backbone": [each.grad for each in network.parameters()],
    }


def assert_close(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for name in ("loss", "accuracy"):
        mean = sum(each[name] for each in found) / len(found)
        assert mean == pytest.approx(expected[name], rel=1e-5)
    # Rank 0 has gathered the centers' gradients; the others are equal.
    pairs = [(found[0]["centers"], expected["centers"])]
    for each in found:
        pairs += zip(each["backbone"], expected["backbone"], strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=TOLERANCE * theirs.abs().max().item())


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_loss__of_all_classes_is_that_of_the_dense_head(
    results: dict[int, list[dict[str, Any]]], case: tuple[MarginKind, str], num_ranks: int
) -> None:
    """Loss, accuracy, gradients of network and centers: margin softmax on the global batch."""
    found = [rank[f"{case[0]} {case[1]} 1.0"] for rank in results[num_ranks]]
    assert_close(found, dense(case))


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_loss__of_sampled_classes_is_a_softmax_over_the_union_of_samples(
    results: dict[int, list[dict[str, Any]]], case: tuple[MarginKind, str], num_ranks: int
) -> None:
    """Below a rate of 1 all is as if the classes that no rank has sampled did not exist."""
    found = [rank[f"{case[0]} {case[1]} 0.4"] for rank in results[num_ranks]]
    # Both micro-batches share their random classes; each has its positives besides.
    values = targets(case[1])
    samples = [samples_of(values, rank, num_ranks) for rank in range(num_ranks)]
    classes = [torch.cat([both[micro_of(row, num_ranks)] for both in samples]) for row in range(ROWS)]
    assert_close(found, dense(case, classes))
    for rank, each in enumerate(found):
        assert torch.equal(each["sample"], torch.cat(samples[rank]).unique())


def micro_of(row: int, num_ranks: int) -> int:
    each = ROWS // num_ranks
    return row % each // (each // 2)


def samples_of(values: Tensor | MixedLabels, rank: int, num_ranks: int) -> list[Tensor]:
    """Numbers of the classes, counted over all ranks, that a rank draws in each micro-batch."""
    head = head_of("cosface", rank, num_ranks, sample_rate=0.4, seed=5)
    head.begin_step(6)
    samples = []
    for micro in range(2):
        part = torch.tensor([micro_of(row, num_ranks) == micro for row in range(ROWS)])
        rows = rows_of(values, part)
        present = [rows] if isinstance(rows, Tensor) else [rows.first, rows.second]
        samples.append(head.sample(torch.stack(present, dim=1)) + head.start)
    return samples


def test_loss__far_from_its_own_class() -> None:
    """ArcFace beyond the angle where it turns into a line, and an embedding on its class."""
    generator = torch.Generator().manual_seed(0)
    head = head_of("arcface")
    softmax = MarginSoftmax(WIDTH, CLASSES, margin=0.5, kind="arcface")
    softmax.load_state_dict(head.state_dict())
    labels = torch.tensor([2, 5, 7])
    start = head.weight.detach()[labels] * torch.tensor([[-1.0], [1.0], [-3.0]])
    start += 0.01 * torch.randn(start.shape, generator=generator)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    loss, is_nearest = head.loss(ours, labels)
    loss.backward()
    expected = F.cross_entropy(softmax(theirs, labels), labels)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert is_nearest.tolist() == [False, True, False]
    for one, other in ((ours, theirs), (head.weight, softmax.weight)):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_loss__huge_scale_stays_finite() -> None:
    """Logits far apart give a finite loss and finite gradients."""
    head = head_of("cosface")
    head.scale = 1e4
    embeddings = head.weight.detach()[:4].clone().requires_grad_()
    loss, _ = head.loss(embeddings, torch.tensor([1, 2, 3, 0]))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_loss__under_autocast() -> None:
    """Embeddings in bfloat16 get a float32 loss, computed in float32, and bfloat16 gradients."""
    embeddings = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels, head = torch.arange(4), head_of("cosface")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head.loss(embeddings.requires_grad_(), labels)
        loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, head.loss(embeddings.detach().float(), labels)[0])
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == torch.bfloat16
    other = head_of("cosface")
    other.loss(embeddings.detach().float(), labels)[0].backward()
    assert head.weight.grad is not None
    assert torch.equal(head.weight.grad, other.weight.grad)  # type: ignore[arg-type]


def in_tf32(values: Tensor) -> Tensor:
    """Round to 11 bits, as a tensor core does: to the nearest, ties away from zero."""
    return ((values.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def test_loss__with_products_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast a GPU may round the factors of all three products; loss and gradients change by some 1e-3."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(64, 128, generator=generator)
    labels = torch.randint(1000, (64,), generator=generator)
    allowed: list[bool] = []
    matmul = Tensor.matmul

    def rounded(one: Tensor, other: Tensor) -> Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return matmul(in_tf32(one), in_tf32(other)) if allowed[-1] else matmul(one, other)

    def run(*, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(3)
        head, leaf = PartialFC(128, 1000), embeddings.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = head.loss(leaf, labels)
        loss.backward()
        assert leaf.grad is not None
        assert head.weight.grad is not None
        return loss.detach(), leaf.grad, head.weight.grad

    plain = run(autocast=False)
    assert all(torch.equal(*pair) for pair in zip(plain, run(autocast=True), strict=True)), "a CPU rounds nothing"
    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    before = torch.backends.cuda.matmul.allow_tf32
    exact, found = run(autocast=False), run(autocast=True)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert allowed == [False] * 3 + [True] * 3
    for value, reference in zip(found, exact, strict=True):
        # Half of 2^-10 for each factor, in cosines that the scale of 64 multiplies.
        difference = (value - reference).norm() / reference.norm()
        assert 0 < difference < 2e-3


def test_loss__differentiated_twice() -> None:
    """A second backward stops, as the first has used up the softmax."""
    head = head_of("cosface")
    loss, _ = head.loss(torch.ones(1, WIDTH), torch.tensor([0]))
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once only"):
        loss.backward()


def test_is_nearest__with_equal_cosines() -> None:
    """An own class that is no nearer than another one is not the nearest."""
    head = head_of("cosface")
    nn.init.ones_(head.weight)
    assert head.loss(torch.ones(2, WIDTH), torch.tensor([0, 4]))[1].tolist() == [False, False]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 11])
def test_start__does_not_depend_on_the_number_of_ranks(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The centers of all ranks are the dense head's, and torch's generator goes on alike."""
    monkeypatch.setattr(partial_fc, "_BLOCK_ROWS", 3)
    torch.manual_seed(3)
    whole, after = MarginSoftmax(WIDTH, CLASSES).weight, torch.rand(1)
    parts = []
    for rank in range(num_ranks):
        parts.append(head_of("cosface", rank, num_ranks).weight)
        assert torch.equal(torch.rand(1), after)
    assert torch.equal(torch.cat(parts), whole)


def test_shard_bounds__covers_all_classes_once() -> None:
    """Ranges follow each other without a gap and differ by one class at most."""
    for num_classes, num_ranks in itertools.product((5, 8, 11, 100), (1, 2, 3, 5)):
        ranges = [shard_bounds(num_classes, rank, num_ranks) for rank in range(num_ranks)]
        assert [each for start, stop in ranges for each in range(start, stop)] == list(range(num_classes))
        sizes = [stop - start for start, stop in ranges]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_ranks", RANKS)
def test_gather_rows__block_after_block(results: dict[int, list[dict[str, Any]]], num_ranks: int) -> None:
    """Rank 0 gets all ranks' rows, of unequal numbers of blocks; the others get nothing."""
    first, *others = [rank["rows"] for rank in results[num_ranks]]
    assert torch.equal(first, head_of("cosface").weight)
    assert others == [None] * (num_ranks - 1)
    parts = [head_of("cosface", rank, 4).own_rows(first) for rank in range(4)]
    assert torch.equal(torch.cat(parts), first)
