from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lafs_ray.method.supervised import Supervised, to_network_input
from lafs_ray.models.fvit import FViT, PartFViT
from lafs_ray.models.heads import MarginSoftmax
from lafs_ray.models.landmarks import LandmarkCNN

CLASSES = 6


@pytest.fixture(scope="module")
def method() -> Supervised:
    """A small Part fViT in eval mode, so that two forwards agree."""
    return small_method("cosface")


def small_method(kind: Literal["cosface", "arcface"]) -> Supervised:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fvit = FViT(16, width=16, depth=1, heads=2, head_dim=8, mlp_width=24)
        head = MarginSoftmax(16, CLASSES, kind=kind)
        supervised = Supervised(PartFViT(LandmarkCNN(16), fvit), head)
    supervised.trainable.eval()
    return supervised


def small_batch(images: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(256, (images, 112, 112, 3), generator=generator).byte(),
        "label": torch.arange(images) % CLASSES,
    }


def test_to_network_input__range_and_order() -> None:
    """0 and 255 become -1 and 1, channels come first, rows stay rows."""
    images = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    images[0, 1, 2, 0] = 255
    found = to_network_input(images)
    assert found.shape == (1, 3, 2, 3)
    assert found[0, 0, 1, 2] == 1.0
    assert found.sum() == 1.0 - 17.0


def test_to_network_input__floats_are_refused() -> None:
    """Images that are floats already would be scaled twice: our own mistake."""
    with pytest.raises(AssertionError, match="float32"):
        to_network_input(torch.zeros(1, 2, 2, 3))


def test_supervised__loss_is_the_margin_cross_entropy(method: Supervised) -> None:
    """The loss is the cross-entropy of the head's logits on images in [-1, 1]."""
    batch = small_batch()
    loss, metrics = method.loss(method.trainable, batch, {})
    network = method.trainable
    embeddings = network.model(to_network_input(batch["images"]))
    expected = F.cross_entropy(network.head(embeddings, batch["label"]), batch["label"])
    assert torch.equal(loss, expected)
    assert torch.equal(metrics["loss"], loss.detach())
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_supervised__accuracy_ignores_the_margin(kind: Literal["cosface", "arcface"]) -> None:
    """Accuracy counts by plain cosines: the share of rows whose nearest class is their own."""
    method = small_method(kind)
    batch = small_batch(12)
    network = method.trainable
    with torch.no_grad():
        embeddings = network.model(to_network_input(batch["images"]))
        # Classes at the embeddings of the first images: those are right by cosine, and wrong with
        # the margin, since all embeddings of an untrained network are near each other.
        network.head.weight.copy_(embeddings[:CLASSES])
        cosines = F.normalize(embeddings, dim=-1) @ F.normalize(network.head.weight, dim=-1).T
        logits = network.head(embeddings, batch["label"])
    expected = (cosines.argmax(-1) == batch["label"]).float().mean()
    with_margin = (logits.argmax(-1) == batch["label"]).float().mean()
    _, metrics = method.loss(network, batch, {})
    assert metrics["accuracy"] == expected
    assert with_margin < expected


def test_supervised__landmark_spread() -> None:
    """The spread is that of eval mode, 0 for equal faces, and measuring it leaves no trace."""
    method = small_method("cosface")
    network = method.trainable.train()
    # One forward that sets the running statistics; those of a fresh network blank every image.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    batch = small_batch(4)
    batch["images"] = batch["images"] // torch.tensor([1, 2, 4, 8]).view(4, 1, 1, 1)
    batch["images"] = batch["images"].byte()
    method.loss(network, batch, {})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reference = copy.deepcopy(network).eval()
    torch.manual_seed(0)
    _, metrics = method.loss(network, batch, {})
    drawn = torch.rand(())
    landmarks = reference.model.landmarks(to_network_input(batch["images"]))
    expected = (landmarks - landmarks.mean(0)).square().mean(0).sqrt().mean().item()
    # The loss's own forward in train mode moves the statistics to the same batch's again.
    assert metrics["landmark_spread"].item() == pytest.approx(expected, rel=1e-2)
    assert expected > 0.1
    assert all(module.training for module in network.modules())

    torch.manual_seed(0)
    network.load_state_dict(before)
    network(to_network_input(batch["images"]), batch["label"])
    assert drawn == torch.rand(()), "measuring drew random numbers"

    batch["images"] = batch["images"][:1].repeat(4, 1, 1, 1)
    _, metrics = method.loss(network.eval(), batch, {})
    # Rows of a batch may differ by float32 rounding of 111 px.
    assert metrics["landmark_spread"].item() == pytest.approx(0.0, abs=1e-3)


def test_supervised__every_parameter_learns() -> None:
    """The gradient reaches the landmark CNN through the patches, and every other parameter."""
    method = small_method("cosface")
    method.trainable.train()
    loss, _ = method.loss(method.trainable, small_batch(), {})
    loss.backward()
    gradients = {name: p.grad for name, p in method.trainable.named_parameters()}
    # Positions beyond the tokens in use do not exist here: 16 landmarks, 17 positions.
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    moved = [n for n, g in gradients.items() if g is not None and g.abs().sum() > 0]
    assert any(name.startswith("model.stn.") for name in moved)
    assert any(name.startswith("model.output_layer.") for name in moved)
    assert "head.weight" in moved


def test_supervised__learns_a_batch() -> None:
    """Ten steps on one batch, with the loop's other calls between, lower the loss."""
    method = small_method("cosface")
    optimizer = torch.optim.AdamW(method.trainable.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss, _ = method.loss(method.trainable, small_batch(), {})
        loss.backward()
        method.before_optimizer(0, {})
        optimizer.step()
        method.finish_step({})
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_supervised__no_state_of_its_own(method: Supervised) -> None:
    """All state lies in `trainable`; somebody else's state is refused."""
    method.load_state_dict(method.state_dict())
    with pytest.raises(AssertionError, match="found \\['teacher'\\]"):
        method.load_state_dict({"teacher": {}})
