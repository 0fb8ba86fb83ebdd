"""LoRA: trained low-rank changes of linear layers that are frozen themselves (Hu et al., arXiv:2106.09685).

Ours, not the package peft: sixty lines that keep the names of all tensors, and reach the last block, which computes the
class token alone from some rows of a layer's weight, without calling the layer. Shape letters: I and O numbers into and
out of a layer, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_DOWN, _UP = ".lora_down", ".lora_up"


class LoRALinear(nn.Linear):
    """A linear layer, frozen, and a trained change: y = x·Wᵀ + b + s·x·downᵀ·upᵀ.

    `lora_up` starts at 0, so that the layer begins as the frozen one, bit by bit; `lora_down` as in the authors' code.

    Args:
        layer: whose weight and bias are shared, and frozen.
        rank: r.
        scale: s; α/r in the paper.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.requires_grad_(False)
        self.scale = scale
        self.lora_down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        return self.rows(x, slice(None))

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Map [..., I] to some of the O numbers."""
        bias = None if self.bias is None else self.bias[rows]
        change = F.linear(F.linear(x, self.lora_down), self.lora_up[rows])
        return F.linear(x, self.weight[rows], bias) + self.scale * change


def add_lora_(blocks: Iterable[nn.Module], rank: int, scale: float) -> None:
    """Put a `LoRALinear` in place of every linear layer of blocks; what is new begins from torch's generator."""
    for block in blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, LoRALinear(child, rank, scale))


def merge_lora(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return a state in which the changes are part of the weights: that of the same network without LoRA.

    Args:
        state: of a network with `LoRALinear` layers.
        scale: s.
    """
    merged = {name: tensor for name, tensor in state.items() if not name.endswith((_DOWN, _UP))}
    for name, up in state.items():
        if name.endswith(_UP):
            layer = name.removesuffix(_UP)
            change = scale * (up.double() @ state[layer + _DOWN].double())
            weight = state[f"{layer}.weight"]
            merged[f"{layer}.weight"] = (weight.double() + change).to(weight.dtype)
    return merged
