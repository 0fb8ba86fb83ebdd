"""fViT: a vision transformer over patch tokens; PartFViT: the same fed at learnt landmarks.

Module names are those of published checkpoints, which explains `layers.i.{0,1}.fn.fn`. The
attention scale is D^-0.5 of the full width (Reference), so that of a head would spoil published
weights. Shape letters: B images, n tokens of at most N, D width, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lafs_ray.errors import ConfigError
from lafs_ray.models.landmarks import LandmarkCNN, TimmLandmarks, predict_landmarks
from lafs_ray.models.patches import extract_patches, grid_patches


@dataclass(frozen=True)
class FViTSize:
    """Widths and counts of a transformer; heads · head_dim need not equal the width."""

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp_width: int


FVIT_SIZES = {
    "base": FViTSize(width=768, depth=12, heads=11, head_dim=64, mlp_width=2048),
    "small": FViTSize(width=384, depth=8, heads=6, head_dim=64, mlp_width=1024),
    "tiny": FViTSize(width=128, depth=2, heads=4, head_dim=32, mlp_width=256),
}


class FViT(nn.Module):
    """Tokens to one embedding: class token, learnt positions, pre-norm blocks, layer norm.

    Args:
        num_tokens: N, the most tokens it can take.
        token_dim: numbers in a token (p·p·3).
        width: D.
        depth: blocks.
        heads: attention heads.
        head_dim: width of a head.
        mlp_width: hidden width of a block's MLP.
        dropout: rate after attention's projection and after both layers of the MLP.
        drop_path: rate at which a sample skips a branch, the same in every block.
        embedding_dropout: rate on tokens and positions.
        init_std: deviation of the initial positions and class token. Reference: 1, which suits
            labels; without them the embedding then hardly depends on the face at the start (its
            deviation is 0.04 in place of 0.4 for 0.02) and self-distillation collapses to uniform.
    """

    def __init__(
        self,
        num_tokens: int = 196,
        token_dim: int = 192,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 11,
        head_dim: int = 64,
        mlp_width: int = 2048,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        embedding_dropout: float = 0.1,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(init_std * torch.randn(1, num_tokens + 1, width))
        self.cls_token = nn.Parameter(init_std * torch.randn(1, 1, width))
        self.patch_to_embedding = nn.Linear(token_dim, width)
        self.dropout = nn.Dropout(embedding_dropout)
        blocks = [
            _Block(
                [
                    _Residual(width, _Attention(width, heads, head_dim, dropout), drop_path),
                    _Residual(width, _MLP(width, mlp_width, dropout), drop_path),
                ]
            )
            for _ in range(depth)
        ]
        self.transformer = Transformer(blocks)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            tokens: float [B, n, token_dim], n ≤ N; token i stands at position i + 1.

        Returns:
            [B, D], the normalized class token.
        """
        return self.encode(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """`forward`, under a name that stays when a subclass starts from images."""
        batch, count, _ = tokens.shape
        assert count < self.pos_embedding.shape[1], (count, self.pos_embedding.shape[1] - 1)
        x = self.patch_to_embedding(tokens)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        x = self.dropout(x + self.pos_embedding[:, : count + 1])
        return self.mlp_head(self.transformer(x)[:, 0])  # type: ignore[no-any-return]

    def _take_over(self, fvit: FViT) -> None:
        """Share another transformer's parts."""
        self.pos_embedding, self.cls_token = fvit.pos_embedding, fvit.cls_token
        self.patch_to_embedding, self.dropout = fvit.patch_to_embedding, fvit.dropout
        self.transformer, self.mlp_head = fvit.transformer, fvit.mlp_head


class PartFViT(FViT):
    """Image to embedding: landmark CNN, patches at the landmarks, transformer; one flat module.

    The parts are taken over, not copied: their parameters are shared with the two arguments.
    Ours: parts are put together instead of built inside, so that each can be loaded, frozen or
    replaced by itself; the names stay flat (`stn.*`, `output_layer.*`, `pos_embedding`, …).

    Args:
        landmark_cnn: with parts `stn` and `output_layer`.
        fvit: for tokens of p·p·3 numbers.
        patch_size: p, in pixels.
    """

    def __init__(
        self, landmark_cnn: LandmarkCNN | TimmLandmarks, fvit: FViT, patch_size: int = 8
    ) -> None:
        nn.Module.__init__(self)
        assert fvit.patch_to_embedding.in_features == 3 * patch_size**2, patch_size
        self.patch_size = patch_size
        # Between positions and transformer: the published order, in which optimizers number them.
        self.pos_embedding, self.cls_token = fvit.pos_embedding, fvit.cls_token
        self.stn, self.output_layer = landmark_cnn.stn, landmark_cnn.output_layer
        self._take_over(fvit)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        return self.embed(images, self.landmarks(images))

    def landmarks(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return predict_landmarks(self.stn, self.output_layer, images)

    def embed(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """Images and landmarks [B, n, 2] in pixels to embeddings [B, D].

        `forward` in two calls serves who needs the landmarks as well (the regularizer).
        """
        return self.encode(extract_patches(images, landmarks, self.patch_size))


class GridFViT(FViT):
    """Image to embedding over plain grid patches, without landmarks (DINO-face); one flat module.

    Args:
        fvit: for tokens of p·p·3 numbers; taken over, not copied.
        patch_size: p, in pixels.
    """

    def __init__(self, fvit: FViT, patch_size: int = 8) -> None:
        nn.Module.__init__(self)
        self.patch_size = patch_size
        self._take_over(fvit)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
        return self.encode(grid_patches(images, self.patch_size))


def build_fvit(
    size: str | FViTSize,
    num_tokens: int = 196,
    token_dim: int = 192,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    init_std: float = 0.02,
) -> FViT:
    """Make a transformer of a given size.

    Args:
        size: a name in `FVIT_SIZES`, or a size of one's own.
        num_tokens: N, the most tokens it can take.
        token_dim: numbers in a token.
        dropout: rate inside the blocks and on the embedded tokens.
        drop_path: rate of stochastic depth.
        init_std: deviation of the initial positions and class token.

    Raises:
        ConfigError: no size has this name.
    """
    if isinstance(size, str):
        if size not in FVIT_SIZES:
            raise ConfigError(
                "transformer size",
                found=repr(size),
                expected=f"one of {', '.join(FVIT_SIZES)}",
                fix="name one of these sizes",
            )
        size = FVIT_SIZES[size]
    return FViT(
        num_tokens,
        token_dim,
        **asdict(size),
        dropout=dropout,
        drop_path=drop_path,
        embedding_dropout=dropout,
        init_std=init_std,
    )


def drop_path(branch: Tensor, rate: float, *, training: bool) -> Tensor:
    """Stochastic depth: zero whole samples [B, …] at `rate`, scale the others by 1/(1-rate)."""
    if not training or rate == 0.0:
        return branch
    keep = 1.0 - rate
    mask = branch.new_empty((len(branch),) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
    return branch * (mask / keep)


class Transformer(nn.Module):
    """Blocks, each after the other.

    `recompute`, where it is set, is activation checkpointing: of each block only the input is kept,
    and the backward pass computes the block again, with the same dropout. That takes a forward
    pass more of time, and of memory a block's in place of all; every number stays, bit for bit.

    Args:
        blocks: maps [B, n, D] to [B, n, D].
    """

    recompute = False

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] to [B, n, D]."""
        recompute = self.recompute and torch.is_grad_enabled()
        for block in self.layers:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class _Block(nn.ModuleList):
    """Attention, then the MLP: two branches under the names of a list."""

    def forward(self, x: Tensor) -> Tensor:
        for branch in self:
            x = branch(x)
        return x


class _Residual(nn.Module):
    """x + drop_path(fn(norm(x))), the sum of a branch that is normalized first."""

    def __init__(self, width: int, branch: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        self.fn = _PreNorm(width, branch)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        return x + drop_path(self.fn(x), self.drop_path_rate, training=self.training)


class _PreNorm(nn.Module):
    def __init__(self, width: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention; `to_qkv` holds queries, keys, values in this order, each split into heads."""

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = width**-0.5
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        qkv = self.to_qkv(x).reshape(batch, count, 3, self.heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, self.scale)
        return self.to_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(QKᵀ·scale)V, for queries, keys and values [B, heads, tokens, D].

    By torch's fused kernel, but not in bfloat16 on a CPU: forward and backward take it 2 to 3 times
    (197 tokens) or 6 to 9 times (37) as long as the products there (torch 2.13). Where a processor
    has no bfloat16 the products are the slower ones, but float32 is the precision to have then
    (`training.precision` says so).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return torch.softmax((query * scale) @ key.mT, dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]
