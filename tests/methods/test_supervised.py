from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lafs_ray.methods.supervised import Supervised, to_network_input
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.margin import MixedLabels
from lafs_ray.models.part_fvit import GridFViT, PartFViT
from lafs_ray.models.patch_sampling import grid_patches
from tests.models.margin_softmax import MarginSoftmax

CLASSES = 6
SIZE = FViTSize(width=16, depth=1, heads=2, head_dim=8, mlp_width=24)


@pytest.fixture(scope="module")
def method() -> Supervised:
    """A small Part fViT in eval mode, so that two forwards agree."""
    return small_method("cosface")


def small_method(kind: Literal["cosface", "arcface"]) -> Supervised:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fvit = FViT(SIZE, 16)
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
    """Images that are floats already would be scaled twice: a bug."""
    with pytest.raises(AssertionError, match="float32"):
        to_network_input(torch.zeros(1, 2, 2, 3))


def test_supervised__loss_is_the_margin_cross_entropy(method: Supervised) -> None:
    """The loss is the head's on the embeddings of images in [-1, 1]."""
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
        # Classes at the embeddings of the first images: those are right by cosine, and wrong with the margin, since all
        # embeddings of an untrained network are near each other.
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


def anchored() -> tuple[Supervised, dict[str, Tensor]]:
    """A method whose anchor is a copy of its landmark CNN, both seeing every face differently."""
    plain = small_method("cosface")
    network = plain.trainable.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    batch = small_batch(4)
    plain.loss(network, batch, {})
    network.eval()
    anchor = LandmarkCNN(16)
    state = {n: t for n, t in network.model.state_dict().items() if n in anchor.state_dict()}
    anchor.load_state_dict(state)
    return Supervised(network.model, network.head, anchor), batch


def test_regularizer__is_weighted_distance_in_units_of_the_side() -> None:
    """λ·MSE of landmarks / 111 is added to the loss; drift is the mean distance in pixels."""
    method, batch = anchored()
    assert method.anchor is not None
    network = method.trainable
    base, _ = method.loss(network, batch, {"regularizer_weight": 0.0})
    _, still = method.loss(network, batch, {"regularizer_weight": 1000.0})
    assert still["landmark_drift_px"] == 0
    assert still["regularizer"] == 0
    with torch.no_grad():
        network.model.output_layer[1].bias.add_(torch.linspace(0, 0.1, 32))
        images = to_network_input(batch["images"])
        ours, theirs = network.model.landmarks(images), method.anchor(images)
    plain, _ = method.loss(network, batch, {"regularizer_weight": 0.0})
    loss, moved = method.loss(network, batch, {"regularizer_weight": 1000.0})
    expected = 1000 * ((ours - theirs) / 111).square().mean()
    assert expected > 0.01
    # float32 sums in another order.
    torch.testing.assert_close(moved["regularizer"], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss, plain + expected, rtol=1e-5, atol=0)
    distance = (ours - theirs).square().sum(dim=-1).sqrt().mean()
    torch.testing.assert_close(moved["landmark_drift_px"], distance, rtol=1e-4, atol=0)
    assert not torch.equal(base, plain)


def test_regularizer__pulls_landmarks_back_and_leaves_the_anchor() -> None:
    """A step along the gradient of a strong pull lessens the drift; the anchor never moves."""
    method, batch = anchored()
    assert method.anchor is not None
    before = copy.deepcopy(method.anchor.state_dict())
    network = method.trainable
    with torch.no_grad():
        network.model.output_layer[1].bias.add_(torch.linspace(0, 0.1, 32))
    # λ so large that the margin loss, which pulls elsewhere, does not count.
    optimizer = torch.optim.Adam([network.model.output_layer[1].bias], lr=5e-3)
    drifts = []
    for _ in range(5):
        loss, metrics = method.loss(network, batch, {"regularizer_weight": 1e6})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        drifts.append(metrics["landmark_drift_px"].item())
    assert drifts[-1] < 0.9 * drifts[0]
    for name, tensor in method.anchor.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(not name.startswith("anchor") for name, _ in network.named_parameters())


def test_mixup__is_that_of_the_mixed_batch(method: Supervised) -> None:
    """A share below 1 trains on neighbors mixed; a share of 1 is the plain step, bit for bit."""
    batch = small_batch()
    plain, _ = method.loss(method.trainable, batch, {})
    unmixed, _ = method.loss(method.trainable, batch, {"mixup_lam": 1.0})
    mixed, metrics = method.loss(method.trainable, batch, {"mixup_lam": 0.3})
    assert torch.equal(plain, unmixed)
    images = to_network_input(batch["images"])
    swapped = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    shares = torch.full((8,), 0.3)
    labels = MixedLabels(batch["label"], batch["label"][swapped], shares)
    network = method.trainable
    expected, is_nearest = network.head.loss(network.model(0.3 * images + 0.7 * images[swapped]), labels)
    # The sum of two products in float32, in another order.
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=0)
    assert metrics["accuracy"] == is_nearest.float().mean()


@pytest.mark.parametrize("part", ["landmarks", "transformer"])
def test_freezing__one_part(part: str) -> None:
    """A frozen part keeps every bit, batch statistics included; the rest, and later it, learns."""
    method = small_method("cosface")
    network = method.trainable.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    states = [copy.deepcopy(network.state_dict())]
    for frozen in (1.0, 0.0):
        values = {f"{part}_frozen": frozen}
        loss, _ = method.loss(network, small_batch(), values)
        loss.backward()
        method.before_optimizer(0, values)
        optimizer.step()
        optimizer.zero_grad()
        states.append(copy.deepcopy(network.state_dict()))
    assert all(module.training for module in network.modules())
    for name in states[0]:
        is_of_landmarks = name.startswith(("model.stn.", "model.output_layer."))
        is_frozen = name.startswith("model.") and is_of_landmarks == (part == "landmarks")
        held = torch.equal(states[0][name], states[1][name])
        assert held == is_frozen, name
        if is_frozen:
            assert not torch.equal(states[1][name], states[2][name]), name


def test_supervised__on_the_grid() -> None:
    """Without landmarks the loss is the head's over grid patches, and no landmark is reported."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fvit = FViT(SIZE).eval()
        head = MarginSoftmax(16, CLASSES)
    method, batch = Supervised(GridFViT(fvit), head), small_batch()
    method.trainable.eval()
    loss, metrics = method.loss(method.trainable, batch, {})
    tokens = grid_patches(to_network_input(batch["images"]), 8)
    expected = F.cross_entropy(head(fvit(tokens), batch["label"]), batch["label"])
    assert torch.equal(loss, expected)
    assert metrics.keys() == {"loss", "accuracy"}


def test_supervised__no_state_of_its_own(method: Supervised) -> None:
    """All state lies in `trainable`; the state of another object is refused."""
    method.load_state_dict(method.state_dict())
    with pytest.raises(AssertionError, match="found \\['teacher'\\]"):
        method.load_state_dict({"teacher": {}})
