"""A transformer's tensors under timm's names (`VisionTransformer`), and back.

timm scales attention by the width of a head, the fViT by its full width: the ratio goes into the queries. timm embeds
patches by a convolution, channels first; ours are flattened (row, column, channel). With these two changes timm's
`VisionTransformer` of a grid network computes the same embeddings. Blocks that are timm's own (`TimmTransformer`) keep
their tensors. Some timm models have no position for the class token: it is then part of the token itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.fvit import FViTSize
from lafs_ray.models.timm_transformer import plain_vit

_OUTER = {
    "cls_token": "cls_token",
    "pos_embedding": "pos_embed",
    "patch_to_embedding.weight": "patch_embed.proj.weight",
    "patch_to_embedding.bias": "patch_embed.proj.bias",
}
_NORM = {"mlp_head.0.weight": "norm.weight", "mlp_head.0.bias": "norm.bias"}
_BLOCK = {
    "0.fn.norm": "norm1",
    "0.fn.fn.to_qkv": "attn.qkv",
    "0.fn.fn.to_out.0": "attn.proj",
    "1.fn.norm": "norm2",
    "1.fn.fn.net.0": "mlp.fc1",
    "1.fn.fn.net.3": "mlp.fc2",
}
_LAYERS, _BLOCKS = "transformer.layers.", "blocks."
_OURS = re.compile(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_PATCHES, _THEIR_PATCHES = "patch_to_embedding.weight", "patch_embed.proj.weight"


def to_timm(backbone: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return the transformer of a backbone under timm's names; other tensors, of a landmark CNN, stay as they are."""
    size, side = architecture.transformer, architecture.patch_size
    assert size is not None
    assert side is not None
    state: dict[str, Tensor] = {}
    for name, tensor in backbone.items():
        if name == _PATCHES and architecture.token_features == "pixels":
            state[_THEIR_PATCHES] = tensor.reshape(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()
        elif size.timm is not None and name.startswith(_LAYERS):
            state[_BLOCKS + name.removeprefix(_LAYERS)] = tensor
        elif (match := _OURS.fullmatch(name)) is not None:
            value = _scaled_queries(tensor, size, _ratio(size)) if "to_qkv" in name else tensor
            state[f"blocks.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"] = value
        else:
            state[{**_OUTER, **_NORM}.get(name, name)] = tensor
    if size.timm is not None and not plain_vit(size.timm).class_position:
        positions = state["pos_embed"]
        state |= {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return state


def from_timm(state: Mapping[str, Tensor], size: FViTSize) -> dict[str, Tensor]:
    """Return a backbone from a state that `to_timm` made.

    Args:
        state: under timm's names.
        size: of the transformer.
    """
    outer = {theirs: ours for ours, theirs in {**_OUTER, **_NORM}.items()}
    inner = {theirs: ours for ours, theirs in _BLOCK.items()}
    backbone: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _THEIR_PATCHES and tensor.ndim == 4:
            backbone[_PATCHES] = tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1).contiguous()
        elif size.timm is not None and name.startswith(_BLOCKS):
            backbone[_LAYERS + name.removeprefix(_BLOCKS)] = tensor
        elif (match := _THEIRS.fullmatch(name)) is not None:
            value = _scaled_queries(tensor, size, 1 / _ratio(size)) if "attn.qkv" in name else tensor
            backbone[f"transformer.layers.{match[1]}.{inner[match[2]]}.{match[3]}"] = value
        else:
            backbone[outer.get(name, name)] = tensor
    positions = backbone.get("pos_embedding")
    if positions is not None and size.timm is not None and not plain_vit(size.timm).class_position:
        backbone["pos_embedding"] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
    return backbone


def _ratio(size: FViTSize) -> float:
    return math.sqrt(size.head_dim / size.width)


def _scaled_queries(weight: Tensor, size: FViTSize, factor: float) -> Tensor:
    count = size.heads * size.head_dim
    return torch.cat([weight[:count] * factor, weight[count:]])
