"""fViT: a vision transformer over patch tokens; PartFViT: the same on patches at landmarks.

Module names are those of published checkpoints, hence `layers.i.{0,1}.fn.fn`. The attention scale is D^-0.5 of the full
width (Reference: `face_pre_pro/ViT_face.py`); a head's width would not fit published weights. Shape letters: B images,
n tokens of at most N, D width, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lafs_ray.models.dropout import Dropout, StochasticDepth, add_dropped, drop_path, dropout
from lafs_ray.models.kept_rows import KeptRows, add_rows, norm_rows, normalizes_whole, take_rows
from lafs_ray.models.lora import LoRALinear
from lafs_ray.models.placement import uses_gpu_form

Path = Tensor | KeptRows | None
"""What a residual branch is dropped for; see `StochasticDepth`."""


@dataclass(frozen=True)
class FViTSize:
    """Widths, depth and heads of a transformer; heads · head_dim need not equal the width.

    `timm` is the name of the timm model whose blocks it has (`models.timm_transformer`); None: the fViT's.
    """

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp_width: int
    timm: str | None = None


FVIT_SIZES = {
    "base": FViTSize(width=768, depth=12, heads=11, head_dim=64, mlp_width=2048),
    "small": FViTSize(width=384, depth=8, heads=6, head_dim=64, mlp_width=1024),
    "shallow": FViTSize(width=384, depth=2, heads=6, head_dim=64, mlp_width=1024),
    "tiny": FViTSize(width=128, depth=2, heads=4, head_dim=32, mlp_width=256),
}


class FViT(nn.Module):
    """Tokens to one embedding: class token, learned positions, pre-norm blocks, layer norm.

    Args:
        size: widths, depth and heads.
        num_tokens: N, the largest number of tokens.
        token_dim: numbers in a token (`models.tokens.token_dim`); p·p·3 for pixels.
        dropout: rate on the embedded tokens, after attention's projection and after both layers of the MLP.
        drop_path: rate of stochastic depth, the same in every block.
        drop_path_per_sample: see `StochasticDepth`.
        init_std: standard deviation of the initial positions and class token. Reference: 1, which suits supervised
            training; without labels the embedding then hardly depends on the face at the start (its standard deviation
            is 0.04; 0.4 for 0.02), and self-distillation collapses to the uniform distribution.
    """

    def __init__(
        self,
        size: FViTSize,
        num_tokens: int = 196,
        token_dim: int = 192,
        *,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        drop_path_per_sample: bool = False,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        width = size.width
        self.pos_embedding = nn.Parameter(init_std * torch.randn(1, num_tokens + 1, width))
        self.cls_token = nn.Parameter(init_std * torch.randn(1, 1, width))
        self.patch_to_embedding = nn.Linear(token_dim, width)
        self.dropout = Dropout(dropout)
        blocks = []
        for _ in range(size.depth):
            attention = _Attention(width, size.heads, size.head_dim)
            mlp = _MLP(width, size.mlp_width, dropout)
            blocks.append(_Block([_Residual(width, branch, dropout) for branch in (attention, mlp)]))
        depth = StochasticDepth(2 * size.depth, drop_path, per_sample=drop_path_per_sample)
        self.transformer = Transformer(blocks, depth)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            tokens: float [B, n, token_dim], n ≤ N; token i has position i + 1.

        Returns:
            [B, D], the normalized class token.
        """
        return self.encode(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """Embed tokens as `forward`, which subclasses override to take images."""
        x = self.transformer(self.with_positions(tokens), class_only=True)
        return self.mlp_head(x[:, 0])  # type: ignore[no-any-return]

    def outputs(self, tokens: Tensor) -> Tensor:
        """Return all normalized outputs [B, n + 1, D] of tokens; the first is the class token of `encode`."""
        return self.mlp_head(self.transformer(self.with_positions(tokens)))  # type: ignore[no-any-return]

    def token_attention(self, tokens: Tensor, block: int = -1) -> Tensor:
        """Return the attention weights of one block, as `forward` computes them; call it in eval mode.

        Reference: DINO's `get_last_selfattention` (`vision_transformer.py`).

        Args:
            tokens: as for `forward`.
            block: its index; negative ones count from the last.

        Returns:
            [B, heads, n + 1, n + 1], weights of keys (last axis) for each query; every row sums to 1. Index 0 is the
            class token, i + 1 is token i.
        """
        layers = list(self.transformer.layers)
        attending = layers[block]
        x = self.with_positions(tokens)
        for before in layers[: layers.index(attending)]:
            x = before(x)
        return cast("_Block", attending).attention_weights(x)

    def with_positions(self, tokens: Tensor) -> Tensor:
        """Return the first block's input [B, n + 1, D], class token first."""
        batch, count, _ = tokens.shape
        assert count < self.pos_embedding.shape[1], (count, self.pos_embedding.shape[1] - 1)
        x = self.patch_to_embedding(tokens)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        return self.dropout(x + self.pos_embedding[:, : count + 1])  # type: ignore[no-any-return]

    def _share_parts(self, fvit: FViT) -> None:
        """Share another transformer's modules."""
        self.pos_embedding, self.cls_token = fvit.pos_embedding, fvit.cls_token
        self.patch_to_embedding, self.dropout = fvit.patch_to_embedding, fvit.dropout
        self.transformer, self.mlp_head = fvit.transformer, fvit.mlp_head


class Transformer(nn.Module):
    """A sequence of blocks.

    `recompute` turns on activation checkpointing: only each block's input is stored, and backward
    computes the block again, with the same dropout. It costs the time of one more forward pass and needs the
    activations of one block instead of all; results are bitwise the same.

    Args:
        blocks: map [B, n, D] to [B, n, D], with what their two branches are dropped for.
        depth: draws that.
    """

    recompute = False

    def __init__(self, blocks: Sequence[nn.Module], depth: StochasticDepth) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.depth = depth

    def forward(self, x: Tensor, *, class_only: bool = False) -> Tensor:
        """[B, n, D] to [B, n, D], or to [B, 1, D]: with `class_only` the last block computes no other token."""
        recompute = self.recompute and torch.is_grad_enabled()
        drawn = self.depth(x)
        last = len(self.layers) - 1
        for i, block in enumerate(self.layers):
            # A block that is frozen is in eval mode, where nothing is dropped.
            paths = drawn[2 * i : 2 * i + 2] if block.training else (None, None)
            args = (x, *paths, class_only and i == last)
            x = checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)
        return x


class _Block(nn.ModuleList):
    """Attention, then the MLP; a list, for the published names."""

    def forward(self, x: Tensor, path: Path = None, mlp_path: Path = None, class_only: bool = False) -> Tensor:
        attention, mlp = self
        return mlp(attention(x, path, class_only), mlp_path)  # type: ignore[no-any-return]

    def attention_weights(self, x: Tensor) -> Tensor:
        """Return the attention weights [B, heads, n, n] of the block's input [B, n, D]."""
        normed = cast("_Residual", self[0]).fn
        return cast("_Attention", normed.fn).weights(normed.norm(x))


def is_plain_block(block: nn.Module) -> bool:
    """Return whether a block is the fViT's own."""
    return isinstance(block, _Block)


class _Residual(nn.Module):
    """x + dropout(fn(norm(x))), for all samples or for some."""

    def __init__(self, width: int, branch: nn.Module, dropout_rate: float) -> None:
        super().__init__()
        self.fn = _PreNorm(width, branch)
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor, path: Path = None, class_only: bool = False) -> Tensor:
        """Map [B, n, D] to the same, or to [B, 1, D].

        Args:
            x: the class token first.
            path: an element of what `StochasticDepth` returns.
            class_only: compute the class token alone; the branch is attention.
        """
        rate, training = self.dropout_rate, self.training
        residual = x[:, :1] if class_only else x
        if path is None:
            return add_dropped(residual, self.fn(x, class_only), rate, training=training)
        if isinstance(path, Tensor):
            return residual + drop_path(dropout(self.fn(x, class_only), rate, training=training), path)
        # In the last block the other gradient is of class tokens alone, so that there is little to add to.
        if normalizes_whole(x) and not class_only:
            normed, x = norm_rows(x, self.fn.norm, path)
            mixed = self.fn.after_norm(normed)
        else:
            rows, x = take_rows(x, path)
            mixed = self.fn(rows, class_only)
        residual = x[:, :1] if class_only else x
        return add_rows(residual, dropout(mixed, rate, training=training), path)


class _PreNorm(nn.Module):
    def __init__(self, width: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = branch

    def forward(self, x: Tensor, class_only: bool = False) -> Tensor:
        return self.after_norm(self.norm(x), class_only)

    def after_norm(self, x: Tensor, class_only: bool = False) -> Tensor:
        """Return the branch of what is normalized."""
        return self.fn(x, class_only=True) if class_only else self.fn(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention; `to_qkv` holds queries, keys, values in this order, each split into heads."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = width**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width))

    def forward(self, x: Tensor, *, class_only: bool = False) -> Tensor:
        query, key, value = self._class_projections(x) if class_only else self._projections(x)
        mixed = attend(query, key, value, self.scale)
        return self.to_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor) -> Tensor:
        """Return softmax(QKᵀ·scale) [B, heads, n, n], which the fused kernel does not return."""
        query, key, _ = self._projections(x)
        return torch.softmax((query * self.scale) @ key.mT, dim=-1)

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [B, heads, n, D] each."""
        batch, count, _ = x.shape
        # Unbound before the transposition: backward then writes the gradient of qkv once, in its own order.
        query, key, value = self.to_qkv(x).view(batch, count, 3, self.heads, self.head_dim).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _class_projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class token's query [B, heads, 1, D], and all keys and values."""
        batch, count, _ = x.shape
        inner = self.heads * self.head_dim
        query = linear_rows(self.to_qkv, x[:, :1], slice(inner)).view(batch, 1, self.heads, self.head_dim)
        others = linear_rows(self.to_qkv, x, slice(inner, None))
        key, value = others.view(batch, count, 2, self.heads, self.head_dim).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(QKᵀ·scale)V, for queries, keys and values [B, heads, tokens, D].

    Uses torch's fused kernel except for bfloat16 on a CPU, where forward and backward take it 2 to 3 times (197 tokens)
    or 6 to 9 times (37 tokens) as long as the two products (torch 2.13).
    """
    if query.dtype == torch.bfloat16 and not uses_gpu_form(query):
        return torch.softmax((query * scale) @ key.mT, dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def linear_rows(layer: nn.Linear, x: Tensor, rows: slice) -> Tensor:
    """Return some of the numbers [..., O] that a layer computes of x [..., I]."""
    if isinstance(layer, LoRALinear):
        return layer.rows(x, rows)
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]
