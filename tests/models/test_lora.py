"""LoRA: what it changes, what it trains, and the same network with the changes merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lafs_ray.models.fvit import FVIT_SIZES, FViT, FViTSize
from lafs_ray.models.lora import LoRALinear, add_lora_, merge_lora
from lafs_ray.models.timm_transformer import new_transformer, plain_vit

# Sums in another order give 1e-6; embeddings are of size 1.
TOLERANCE = 1e-5
SIZES = {"fvit": FVIT_SIZES["tiny"], "timm": None}


def transformer(kind: str) -> FViT:
    torch.manual_seed(1)
    size: FViTSize = SIZES[kind] or plain_vit("test_vit").size
    return new_transformer(size, 16, 192).eval()


def tokens() -> Tensor:
    return torch.rand(3, 16, 192, generator=torch.Generator().manual_seed(2)) * 2 - 1


def with_lora(plain: FViT, *, changed: bool, first: int = 0) -> FViT:
    network = copy.deepcopy(plain).requires_grad_(False)
    torch.manual_seed(3)
    add_lora_(network.transformer.layers[first:], rank=4, scale=2.0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if changed and name.endswith("lora_up"):
                parameter.normal_(std=0.1)
    return network


@pytest.mark.parametrize("kind", SIZES)
def test_lora__begins_as_the_network_was(kind: str) -> None:
    """Bit by bit, the class token alone and all outputs, where that is frozen: torch has other products for weights
    that need a gradient."""
    plain = transformer(kind).requires_grad_(False)
    network = with_lora(plain, changed=False)
    with torch.no_grad():
        assert torch.equal(network(tokens()), plain(tokens()))
        assert torch.equal(network.outputs(tokens()), plain.outputs(tokens()))


@pytest.mark.parametrize("kind", SIZES)
def test_lora__merged_is_the_same_network(kind: str) -> None:
    """With the changes in its weights, a network without LoRA gives the same outputs, and others than at the start."""
    plain = transformer(kind)
    network, merged = with_lora(plain, changed=True), copy.deepcopy(plain)
    merged.load_state_dict(merge_lora(network.state_dict(), scale=2.0), strict=True)
    with torch.no_grad():
        for run in (FViT.encode, FViT.outputs, FViT.token_attention):
            found, expected = run(network, tokens()), run(merged, tokens())
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
            assert (found - run(plain, tokens())).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", SIZES)
def test_lora__trains_every_layer_of_the_blocks_and_nothing_else(kind: str) -> None:
    """Each linear layer of the blocks from `first` on has its two factors, and only they get a gradient."""
    network = with_lora(transformer(kind), changed=True, first=1)
    network(tokens()).square().sum().backward()
    found = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    layers = {
        f"transformer.layers.{name}"
        for name, module in network.transformer.layers.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("0.")
    }
    assert len(layers) == 4 * (len(network.transformer.layers) - 1)
    assert found == {f"{layer}.{part}" for layer in layers for part in ("lora_down", "lora_up")}
    assert not [m for m in network.transformer.layers[0].modules() if isinstance(m, LoRALinear)]


def test_lora__gradients_are_those_of_the_merged_weight() -> None:
    """With W' = W + s·up·down: the factors' gradients are s·dW'·downᵀ and s·upᵀ·dW', also of some rows."""
    torch.manual_seed(4)
    layer = LoRALinear(nn.Linear(6, 9), rank=2, scale=1.5)
    nn.init.normal_(layer.lora_up)
    x, target = torch.randn(5, 6), torch.randn(5, 4)
    ((layer.rows(x, slice(2, 6)) - target) ** 2).sum().backward()
    weight = (layer.weight + layer.scale * layer.lora_up @ layer.lora_down).detach().requires_grad_()
    ((nn.functional.linear(x, weight, layer.bias)[:, 2:6] - target) ** 2).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(layer.lora_up.grad, layer.scale * weight.grad @ layer.lora_down.T)
    torch.testing.assert_close(layer.lora_down.grad, layer.scale * layer.lora_up.T @ weight.grad)
    assert layer.weight.grad is None
    assert layer.bias.grad is None
