"""The loss of distillation against its definition, and what a step changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lafs_ray.methods.distillation import Distillation, FrozenNetwork, distillation_loss
from lafs_ray.methods.lafs import LafsNetwork
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.readout import Whitening

SIZE = FViTSize(width=16, depth=1, heads=2, head_dim=8, mlp_width=12)
NUM_TOKENS, TOKEN_DIM, DIM = 4, 6, 5


def transformer() -> FViT:
    return FViT(SIZE, NUM_TOKENS, TOKEN_DIM, dropout=0.0, drop_path=0.0)


def whitening() -> Whitening:
    """A map of all outputs, mean 0.1."""
    found = Whitening(SIZE.width * (NUM_TOKENS + 1), DIM)
    found.matrix.copy_(torch.randn_like(found.matrix))
    found.mean.fill_(0.1)
    return found.requires_grad_(requires_grad=False)


def task(seed: int = 0) -> Distillation:
    torch.manual_seed(seed)
    student, copy = (LafsNetwork(transformer(), nn.Linear(SIZE.width, DIM)) for _ in range(2))
    return Distillation(student, copy, FrozenNetwork(transformer(), "all", whitening()), temp=0.1)


def batch(count: int = 3) -> dict[str, Tensor]:
    """Tokens of global and local views."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"global_tokens": (count, 2, NUM_TOKENS, TOKEN_DIM), "local_tokens": (count, 3, 2, TOKEN_DIM)}
    return {name: torch.rand(shape, generator=generator) * 2 - 1 for name, shape in shapes.items()}


def test_loss__is_its_definition() -> None:
    """In NumPy, row by row, in float64."""
    rng = np.random.default_rng(0)
    student, target = rng.normal(size=(6, DIM)), rng.normal(size=(2, DIM))
    total, cosines = 0.0, []
    for row, vector in enumerate(student):
        scores = [vector @ other / np.linalg.norm(vector) / np.linalg.norm(other) for other in target]
        total += math.log(sum(math.exp(score / 0.2) for score in scores)) - scores[row % 2] / 0.2
        cosines.append(scores)
    loss, metrics = distillation_loss(torch.tensor(student), torch.tensor(target), temp=0.2)
    # float32 sums of five products.
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)
    assert float(metrics["loss"]) == float(loss)
    own = [scores[row % 2] for row, scores in enumerate(cosines)]
    assert float(metrics["similarity"]) == pytest.approx(np.mean(own), rel=1e-5)
    found = [int(np.argmax(scores)) == row % 2 for row, scores in enumerate(cosines)]
    assert float(metrics["found"]) == pytest.approx(np.mean(found))


def test_task__target_is_the_face_that_the_frozen_network_sees_in_both_global_views() -> None:
    """A student that gives exactly that for every view has the least loss: similarity 1."""
    distillation, tokens = task(), batch()
    views = [distillation.frozen(tokens["global_tokens"][:, view]) for view in range(2)]
    target = sum(view / view.norm(dim=1, keepdim=True) for view in views)
    perfect = nn.Module()
    perfect.forward = lambda _: (target.repeat(5, 1), target)  # type: ignore[method-assign, assignment, union-attr]
    _, metrics = distillation.loss(perfect, tokens, {})
    assert float(metrics["similarity"]) == pytest.approx(1, abs=1e-6)
    assert float(metrics["found"]) == 1


def test_task__gradients_reach_the_student_alone_and_are_copied_with_it() -> None:
    """The frozen network stays as it is; what is evaluated is the student, unless the step is skipped."""
    distillation = task()
    before = {name: value.clone() for name, value in distillation.frozen.state_dict().items()}
    loss, _ = distillation.loss(distillation.trainable, batch(), {"ema_momentum": 0.75})
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in distillation.trainable.parameters())
    assert all(parameter.grad is None for parameter in distillation.frozen.parameters())
    bias, copy = distillation.trainable.head.bias, distillation.teacher.head.bias
    start = copy.clone()
    with torch.no_grad():
        bias.add_(1)
    distillation.finish_step({"ema_momentum": 0.75}, torch.tensor(1.0))
    assert torch.equal(copy, start)
    distillation.finish_step({"ema_momentum": 0.75}, torch.tensor(0.0))
    assert torch.equal(copy, start + 1)
    assert all(torch.equal(value, before[name]) for name, value in distillation.frozen.state_dict().items())


def test_frozen__computes_in_float32_under_autocast() -> None:
    """Its whitening scales small differences up, which bfloat16 would lose."""
    distillation, tokens = task(), batch()["global_tokens"][:, 0]
    expected = distillation.frozen(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation.frozen(tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_task__learns_what_the_frozen_network_sees() -> None:
    """Faces that it was not trained on are found by the class token among others, after some steps and not before."""
    distillation = task()
    optimizer = torch.optim.AdamW(distillation.trainable.parameters(), lr=1e-2)
    faces = torch.randn(256, 1, NUM_TOKENS, TOKEN_DIM, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    new = {"global_tokens": faces[:64].repeat(1, 2, 1, 1), "local_tokens": faces[:64].repeat(1, 1, 1, 1)}

    def found() -> float:
        with torch.no_grad():
            return float(distillation.loss(distillation.trainable, new, {})[1]["found"])

    start = found()
    for step in range(300):
        chosen = faces[64 + torch.randperm(192, generator=torch.Generator().manual_seed(step))[:64]]
        tokens = {"global_tokens": chosen.repeat(1, 2, 1, 1), "local_tokens": chosen}
        loss, _ = distillation.loss(distillation.trainable, tokens, {})
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # By chance 1 in 64.
    assert start < 0.1
    assert found() > 0.3
