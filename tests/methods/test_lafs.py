from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.methods.koleo import koleo_loss
from lafs_ray.methods.lafs import Lafs, LafsNetwork, dequantize
from lafs_ray.methods.optim import clip_each_, parameter_groups
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.placement import gpu_form_everywhere
from tests.methods.reference import REFERENCE

NUM_PROTOTYPES = 24


def small_network(dropout: float = 0.0, seed: int = 0) -> LafsNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = FViTSize(width=16, depth=2, heads=2, head_dim=8, mlp_width=24)
        backbone = FViT(size, 16, 12, dropout=dropout, drop_path=dropout)
        return LafsNetwork(backbone, DINOHead(16, NUM_PROTOTYPES, hidden_dim=20, bottleneck_dim=8))


def small_lafs(dropout: float = 0.0, **options: Any) -> Lafs:
    networks = (small_network(dropout, seed).double() for seed in (0, 1))
    lafs = Lafs(*networks, num_prototypes=NUM_PROTOTYPES, **(REFERENCE | options))
    lafs.center.double()
    return lafs


def small_batch(images: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "global_tokens": torch.rand(images, 2, 16, 12, generator=generator).double() * 2 - 1,
        "local_tokens": torch.rand(images, 3, 5, 12, generator=generator).double() * 2 - 1,
    }


VALUES = {"teacher_temp": 0.05, "ema_momentum": 0.9}


def optimizer_of(lafs: Lafs) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(lafs.trainable, 0.04), lr=1e-2)


def step(lafs: Lafs, optimizer: torch.optim.Optimizer, batches: list[dict[str, Tensor]]) -> float:
    """One optimizer step over the micro-batches, as the training loop takes it."""
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = lafs.loss(lafs.trainable, batch, VALUES)
        (loss / len(batches)).backward()
        total += loss.item() / len(batches)
    clip_each_(lafs.trainable.parameters(), 3.0)
    lafs.before_optimizer(1, {})
    optimizer.step()
    lafs.finish_step(VALUES)
    return total


def test_lafs__accumulation_equals_a_larger_batch() -> None:
    """Two micro-batches of 2 move student, teacher and center as one batch of 4 does, with and without neighbors."""
    whole, parts = small_lafs(), small_lafs()
    optimizers = [optimizer_of(whole), optimizer_of(parts)]
    for seed in range(3):
        batch = small_batch(4, seed)
        if seed:
            batch["paired"] = torch.tensor([False, False, True, True])
        halves = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
        losses = step(whole, optimizers[0], [batch]), step(parts, optimizers[1], halves)
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    # float64; Adam divides tiny gradients by their size, which magnifies rounding.
    for mine, theirs in ((whole.trainable, parts.trainable), (whole.teacher, parts.teacher)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(whole.center.center, parts.center.center, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_lafs__without_local_views(on_gpu: bool) -> None:
    """The loss is that of the global views alone, also where stochastic depth drops some of them."""
    lafs = small_lafs()
    lafs.trainable.backbone.transformer.depth.rate = 0.3
    batch = small_batch(4)
    batch["local_tokens"] = batch["local_tokens"][:, :0]
    views = [batch["global_tokens"].transpose(0, 1).flatten(0, 1)]
    form = gpu_form_everywhere if on_gpu else contextlib.nullcontext
    with form():
        torch.manual_seed(0)
        loss, _ = lafs.loss(lafs.trainable, batch, VALUES)
        torch.manual_seed(0)
        (student, _), (teacher, _) = lafs.trainable(views), lafs.teacher(views)
    targets = torch.softmax(teacher.detach() / VALUES["teacher_temp"], dim=-1)
    log_shares = torch.log_softmax(student / lafs.student_temp, dim=-1).unflatten(0, (2, -1))
    pairs = -(targets.unflatten(0, (2, -1)).flip(0) * log_shares).sum(-1)
    torch.testing.assert_close(loss, pairs.mean())


def test_lafs__diagnostics_where_a_report_follows() -> None:
    """In the form for GPUs other steps have the same loss and center without them; on a CPU every step has them."""
    found = {}
    for on_gpu in (False, True):
        for reports in (False, True):
            lafs = small_lafs()
            lafs.begin_step(0, reports=reports)
            with gpu_form_everywhere() if on_gpu else contextlib.nullcontext():
                loss, metrics = lafs.loss(lafs.trainable, small_batch(4), VALUES)
            found[on_gpu, reports] = float(loss.detach()), lafs.center.pending.tolist(), set(metrics)
    assert found[False, False] == found[False, True]
    assert found[True, False][:2] == found[True, True][:2]
    assert found[True, False][2] == {"loss"}
    assert found[True, True][2] == found[False, True][2] > {"loss", "kl", "teacher_entropy"}


def test_lafs__teacher_starts_as_the_student_and_has_no_gradient() -> None:
    """The teacher takes the student's weights, and a backward leaves it alone."""
    lafs = small_lafs()
    for mine, theirs in zip(lafs.teacher.parameters(), lafs.trainable.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before = copy.deepcopy(lafs.teacher.state_dict())
    loss, metrics = lafs.loss(lafs.trainable, small_batch(2), VALUES)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in lafs.teacher.parameters())
    assert all(p.grad is not None for p in lafs.trainable.parameters() if p.requires_grad)
    assert all(torch.equal(value, before[key]) for key, value in lafs.teacher.state_dict().items())
    assert all(not value.requires_grad for value in metrics.values())
    assert torch.equal(metrics["loss"], loss.detach())


@pytest.mark.parametrize("teacher_dropout", [True, False])
def test_lafs__teacher_dropout(teacher_dropout: bool) -> None:
    """The teacher's scores vary from call to call exactly when its dropout is left on."""
    lafs = small_lafs(dropout=0.5, teacher_dropout=teacher_dropout)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        lafs.loss(lafs.trainable, small_batch(2), VALUES)
        found.append(lafs.center.pending.clone())
        lafs.center.update()
    assert torch.equal(found[0], found[1]) is not teacher_dropout
    assert lafs.trainable.training


def test_lafs__last_layer_frozen_in_the_first_epochs() -> None:
    """The prototypes' gradient is gone while the epoch is below the limit, then stays."""
    lafs = small_lafs(freeze_last_layer_epochs=2)
    for epoch, kept in ((0, False), (1, False), (2, True)):
        loss, _ = lafs.loss(lafs.trainable, small_batch(2), VALUES)
        loss.backward()
        lafs.before_optimizer(epoch, {})
        assert (lafs.trainable.head.last_layer.weight_v.grad is not None) is kept
        assert lafs.trainable.backbone.cls_token.grad is not None


def test_lafs__state_round_trip() -> None:
    """Saved, read back into a fresh pair and continued: every loss and weight bit for bit."""
    lafs = small_lafs()
    optimizer = optimizer_of(lafs)
    step(lafs, optimizer, [small_batch(2, 0)])
    file = io.BytesIO()
    torch.save([lafs.trainable.state_dict(), lafs.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    student, method, optimizer_state = torch.load(file, weights_only=True)
    resumed = small_lafs()
    resumed.trainable.load_state_dict(student)
    resumed.load_state_dict(method)
    second = optimizer_of(resumed)
    second.load_state_dict(optimizer_state)
    for seed in (1, 2):
        batch = [small_batch(2, seed)]
        assert step(lafs, optimizer, batch) == step(resumed, second, batch)
    for mine, theirs in (
        (lafs.trainable.state_dict(), resumed.trainable.state_dict()),
        (lafs.teacher.state_dict(), resumed.teacher.state_dict()),
        (lafs.center.state_dict(), resumed.center.state_dict()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


def test_lafs__uint8_tokens() -> None:
    """uint8 tokens give the loss of the same tokens in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    raw = {
        "global_tokens": torch.randint(256, (2, 2, 16, 12), generator=generator),
        "local_tokens": torch.randint(256, (2, 3, 5, 12), generator=generator),
    }
    lafs = Lafs(small_network(), small_network(), num_prototypes=NUM_PROTOTYPES, **REFERENCE)
    stored, _ = lafs.loss(lafs.trainable, {k: v.byte() for k, v in raw.items()}, VALUES)
    plain, _ = lafs.loss(lafs.trainable, {k: v / 127.5 - 1 for k, v in raw.items()}, VALUES)
    assert torch.equal(stored, plain)


def test_dequantize__range() -> None:
    """0 and 255 are the ends of [-1, 1]; floats come back as they are."""
    assert dequantize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    tokens = torch.rand(3)
    assert dequantize(tokens) is tokens


def test_lafs_network__batches_neighbors_of_one_token_count() -> None:
    """Sets keep their order of rows, equal neighbors run at once, and the head runs once."""
    network = small_network()
    sets = [torch.randn(2, count, 12, generator=torch.Generator()) for count in (16, 16, 5, 5, 5)]
    calls: dict[str, int] = {"backbone": 0, "head": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [network.get_submodule(n).register_forward_hook(count(n)) for n in calls]
    together, embeddings = network(sets)
    assert calls == {"backbone": 2, "head": 1}
    for handle in handles:
        handle.remove()
    apart = [network([tokens]) for tokens in sets]
    # Matrix products of other shapes round differently in float32.
    for found, parts in zip((together, embeddings), zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(parts), rtol=1e-5, atol=1e-6)
    assert {key.split(".")[0] for key in network.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_lafs__neighbors_learn_the_targets_of_one_another(on_gpu: bool, centering: str) -> None:
    """The loss is that of a teacher which saw the partner's views: rows 0 and 1 are a pair, 4 and 5, 2 and 3 not."""
    lafs = small_lafs(centering=centering)
    batch = small_batch(6)
    paired = torch.tensor([True, True, False, False, True, True])
    views = [batch[name].transpose(0, 1).flatten(0, 1) for name in ("global_tokens", "local_tokens")]
    scores, _ = lafs.trainable(views)
    targets = lafs._targets(lafs.teacher(views[:1])[0], 0.05).view(2, 6, -1)[:, [1, 0, 2, 3, 5, 4]]
    logs = torch.log_softmax(scores.view(5, 6, -1) / lafs.student_temp, dim=-1)
    terms = [-(targets[g] * logs[v]).sum(-1).mean() for g in range(2) for v in range(5) if v != g]
    expected = sum(terms) / len(terms)
    form = gpu_form_everywhere if on_gpu else contextlib.nullcontext
    with form():
        found, metrics = lafs.loss(lafs.trainable, {**batch, "paired": paired}, VALUES)
        alone, _ = lafs.loss(lafs.trainable, batch, VALUES)
        single, _ = lafs.loss(lafs.trainable, {**batch, "paired": torch.zeros(6, dtype=torch.bool)}, VALUES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(single, alone, rtol=0, atol=0)
    assert abs(found - alone) > 1e-6
    assert torch.equal(metrics["loss"], found.detach())


def test_lafs__koleo_leaves_neighbors_together() -> None:
    """KoLeo of a step passes over each row's partner."""
    lafs = small_lafs(koleo=1.0)
    batch = {**small_batch(6), "paired": torch.tensor([True, True, False, False, True, True])}
    _, metrics = lafs.loss(lafs.trainable, batch, VALUES)
    views = batch["global_tokens"].transpose(0, 1).flatten(0, 1)
    expected = koleo_loss(lafs.trainable.embed([views]), num_views=2, partners=torch.tensor([1, 0, 2, 3, 5, 4]))
    torch.testing.assert_close(metrics["koleo"], expected.detach(), rtol=1e-9, atol=0)
