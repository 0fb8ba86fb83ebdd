"""A timm ViT as the transformer: its blocks and its last norm over our tokens.

Patch embedding, class token, positions, dropout and stochastic depth are the fViT's, so that landmarks, the plain grid
and every setting work as before. timm's module names stay inside the blocks: `transformer.layers.i.attn.qkv` is timm's
`blocks.i.attn.qkv`, and a grid network is timm's own (`checkpoints.timm_names`). Shape letters as in `models.fvit`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lafs_ray.compat import import_timm
from lafs_ray.config.train import TIMM_PREFIX, Model
from lafs_ray.errors import ConfigError
from lafs_ray.models.dropout import Dropout, StochasticDepth, drop_path
from lafs_ray.models.fvit import FVIT_SIZES, FViT, FViTSize, Path, Transformer
from lafs_ray.models.kept_rows import add_rows, take_rows

_FAMILIES = ("vision_transformer", "deit")
_SUPPORTED = (
    "a plain ViT of timm, with class token, learned positions, plain blocks and a last norm: vit_tiny_patch16_224, "
    "vit_small_patch16_224, vit_base_patch16_224, vit_base_patch14_dinov2, deit_small_patch16_224, …"
)


class PlainViT(NamedTuple):
    """What is read off a timm model, without its weights.

    Args:
        size: widths, depth and heads.
        class_position: whether its positions have one for the class token.
    """

    size: FViTSize
    class_position: bool


def configured_size(model: Model) -> FViTSize:
    """Return the size of the transformer that the settings name.

    Raises:
        ConfigError: timm does not have `model.student`, or it is no plain ViT.
    """
    if model.student is not None:
        return plain_vit(model.student.removeprefix(TIMM_PREFIX)).size
    return FVIT_SIZES[model.size]


def size_settings(size: FViTSize | None) -> dict[str, str]:
    """Return the settings of `model` that give a size; empty if none does."""
    if size is not None and size.timm is not None:
        return {"student": TIMM_PREFIX + size.timm}
    return next(({"size": name} for name, known in FVIT_SIZES.items() if known == size), {})


def new_transformer(
    size: FViTSize,
    num_tokens: int,
    token_dim: int,
    *,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    drop_path_per_sample: bool = False,
    init_std: float = 0.02,
) -> FViT:
    """Build a transformer of a size with new weights: the fViT, or one of a timm model's blocks.

    Raises:
        ConfigError: timm does not have the model of that name, or it is no plain ViT.
    """
    kind: type[FViT] = FViT if size.timm is None else TimmTransformer
    return kind(
        size,
        num_tokens,
        token_dim,
        dropout=dropout,
        drop_path=drop_path,
        drop_path_per_sample=drop_path_per_sample,
        init_std=init_std,
    )


class TimmTransformer(FViT):
    """Tokens to one embedding, as `FViT`, by the blocks of a timm ViT.

    Args:
        size: with timm's name; of `plain_vit`.
        num_tokens: N, the largest number of tokens.
        token_dim: numbers in a token.
        dropout: rate at the same places as in the fViT.
        drop_path: rate of stochastic depth. Ours: the same in every block; timm's rises with the depth.
        drop_path_per_sample: see `StochasticDepth`.
        init_std: standard deviation of the initial positions and class token; blocks begin as timm's.

    Raises:
        ConfigError: timm does not have the model, or it is no plain ViT.
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
        nn.Module.__init__(self)
        assert size.timm is not None
        assert plain_vit(size.timm).size == size, size
        self.pos_embedding = nn.Parameter(init_std * torch.randn(1, num_tokens + 1, size.width))
        self.cls_token = nn.Parameter(init_std * torch.randn(1, 1, size.width))
        self.patch_to_embedding = nn.Linear(token_dim, size.width)
        self.dropout = Dropout(dropout)
        model = import_timm().create_model(size.timm, pretrained=False, num_classes=0, proj_drop_rate=dropout)
        depth = StochasticDepth(2 * size.depth, drop_path, per_sample=drop_path_per_sample)
        self.transformer = Transformer([_TimmBlock(block) for block in model.blocks], depth)
        self.mlp_head = nn.Sequential(model.norm)


@functools.cache
def plain_vit(name: str) -> PlainViT:
    """Read a timm ViT's size, without allocating its weights.

    Args:
        name: timm's name, without prefix; a tag of pretrained weights may follow (`vit_small_patch16_224.dino`).

    Raises:
        ConfigError: timm does not have it, or it is no plain ViT.
    """
    timm = import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(module=_FAMILIES[0]), n=3)
        raise ConfigError(
            f"student {TIMM_PREFIX}{name}",
            found=f"{name!r}, which timm {timm.__version__} does not have",
            expected=f"one of {', '.join(close)}" if close else "a name of timm.list_models('vit_*')",
            fix="correct the name, or install a timm that has this model",
        )
    if not timm.models.is_model_in_modules(name.partition(".")[0], _FAMILIES):
        raise _refusal(name, "a model of another family")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    unlike = _unlike_plain(model)
    if unlike:
        raise _refusal(name, unlike)
    block = model.blocks[0]
    hidden, width = block.mlp.fc1.weight.shape
    size = FViTSize(width, len(model.blocks), block.attn.num_heads, block.attn.head_dim, hidden, timm=name)
    return PlainViT(size, not model.no_embed_class)


def _refusal(name: str, found: str) -> ConfigError:
    return ConfigError(
        f"student {TIMM_PREFIX}{name}",
        found=found,
        expected=_SUPPORTED,
        fix="choose one of these, or leave model.student out for the fViT",
    )


def _unlike_plain(model: Any) -> str:
    """Return what keeps a model from being a plain ViT; empty if nothing does."""
    timm = importlib.import_module("timm.models.vision_transformer")
    if type(model) is not timm.VisionTransformer:
        return f"a {type(model).__name__}"
    block = model.blocks[0]
    signs = {
        "no class token": model.cls_token is None,
        "register tokens": model.reg_token is not None,
        "no learned positions": model.pos_embed is None,
        "a norm before the first block": not isinstance(model.norm_pre, nn.Identity),
        "no norm after the last block": isinstance(model.norm, nn.Identity),
    }
    kinds = (block, timm.Block), (getattr(block, "attn", None), timm.Attention), (getattr(block, "mlp", None), timm.Mlp)
    signs |= {f"blocks with a {type(part).__name__}": type(part) is not kind for part, kind in kinds}
    return ", ".join(sign for sign, shown in signs.items() if shown)


class _TimmBlock(nn.Module):
    """A block of timm with our stochastic depth and dropout; submodules keep timm's names.

    Args:
        block: timm's `Block`, whose parts are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        for part in (self.attn, self.mlp):
            for name, child in list(part.named_children()):
                # torch's mask takes a third of a forward on a CPU; `models.dropout`.
                if isinstance(child, nn.Dropout) and child.p > 0:
                    setattr(part, name, Dropout(child.p))

    def forward(self, x: Tensor, path: Path = None, mlp_path: Path = None, class_only: bool = False) -> Tensor:
        x = _add(x, self._attention, path, class_only=class_only)
        return _add(x, self._mlp, mlp_path)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Return the attention weights [B, heads, n, n] of the block's input [B, n, D]."""
        attention = self.attn
        qkv = attention.qkv(self.norm1(x)).unflatten(-1, (3, attention.num_heads, attention.head_dim))
        query, key, _ = qkv.transpose(1, 3).unbind(2)
        scores = (attention.q_norm(query) * attention.scale) @ attention.k_norm(key).mT
        return torch.softmax(scores, dim=-1)

    def _attention(self, x: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(x)))  # type: ignore[no-any-return]

    def _mlp(self, x: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def _add(x: Tensor, branch: Callable[[Tensor], Tensor], path: Path, *, class_only: bool = False) -> Tensor:
    """Return x [B, n, D] plus a branch of it, for all samples or for some; with `class_only` of the first token alone.

    timm's attention has no form for the class token alone, so it computes all tokens, and one of them is taken.
    """
    if path is None or isinstance(path, Tensor):
        change, first = branch(x), x
    else:
        rows, first = take_rows(x, path)
        change = branch(rows)
    if class_only:
        change, first = change[:, :1], first[:, :1]
    if path is None:
        return first + change
    return first + drop_path(change, path) if isinstance(path, Tensor) else add_rows(first, change, path)
