"""Sets of views of different lengths through one transformer at once, for a GPU that runs operator by operator.

Layers other than attention treat every token by itself, so global and local views (197 and 37 tokens) can be one list
of tokens [T, D] there; attention runs on each set. That halves the launches of the student, makes one gradient of each
weight in place of two that are added, and costs one copy of attention's outputs. Compiled blocks keep two passes: they
have few launches. What is dropped is drawn for each set, as in two passes. Shape letters: R rows (views) of a set, n
its tokens with the class token, T tokens of all sets, k those kept, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lafs_ray.models.dropout import dropout
from lafs_ray.models.fvit import FViT, attend, is_plain_block, linear_rows
from lafs_ray.models.kept_rows import KeptRows, add_looked_up, take_rows

Shapes = list[tuple[int, int]]
"""(R, n) of each set."""


@dataclass(frozen=True)
class _Kept:
    """Tokens of all sets that a branch is computed for.

    Args:
        rows: which, each with the factor of its set in an addition.
        scales: float32 [k, 1], these factors.
        shapes: of the sets that are kept.
    """

    rows: KeptRows
    scales: Tensor
    shapes: Shapes


def can_encode_together(fvit: FViT) -> bool:
    """Return whether `encode_together` computes what two passes do: blocks of ours, not compiled, none frozen."""
    transformer = fvit.transformer
    is_dropped_by_count = not transformer.depth.per_sample or transformer.depth.rate == 0.0
    blocks = list(transformer.layers)
    return (
        len(blocks) > 0
        and is_dropped_by_count
        and all(
            is_plain_block(block) and block._compiled_call_impl is None and block.training == transformer.training
            for block in blocks
        )
    )


def encode_together(fvit: FViT, sets: Sequence[Tensor]) -> Tensor:
    """Embed sets of tokens [R_i, n_i, P] as [fvit.encode(each) for each], joined: [ΣR_i, D]."""
    transformer = fvit.transformer
    embedded = [fvit.with_positions(tokens) for tokens in sets]
    shapes = [(len(x), x.shape[1]) for x in embedded]
    drawn = [transformer.depth(x) for x in embedded]
    by_token = _join([each[:-1] for each in drawn], shapes)
    # Behind its attention the last block has class tokens alone.
    by_row = _join([each[-2:] for each in drawn], [(rows, 1) for rows, _ in shapes])
    x = torch.cat([each.flatten(0, 1) for each in embedded])
    recompute = transformer.recompute and torch.is_grad_enabled()
    for i, block in enumerate(transformer.layers):
        is_last = i == len(transformer.layers) - 1
        kept = by_token[2 * i], *(by_row if is_last else (by_token[2 * i], by_token[2 * i + 1]))
        args = (block, x, shapes, *kept, is_last)
        x = checkpoint(_block, *args, use_reentrant=False) if recompute else _block(*args)
    return fvit.mlp_head(x)  # type: ignore[no-any-return]


def _block(
    block: Any,
    x: Tensor,
    shapes: Shapes,
    kept: _Kept | None,
    kept_after: _Kept | None,
    mlp_kept: _Kept | None,
    is_last: bool,
) -> Tensor:
    """Map tokens [T, D] to the same; in the last block to the class tokens [ΣR, D].

    `kept` is what attention sees, `kept_after` the same of the tokens that it is added to.
    """
    attention, mlp = block
    taken, x = take_rows(x, kept.rows) if kept else (x, x)
    own, norm, rate = attention.fn.fn, attention.fn.norm, attention.dropout_rate
    mixed = _attention(own, norm(taken), kept.shapes if kept else shapes, class_only=is_last)
    branch = dropout(own.to_out(mixed), rate, training=attention.training)
    x = _add(_class_tokens(x, shapes) if is_last else x, branch, kept_after)
    taken, x = take_rows(x, mlp_kept.rows) if mlp_kept else (x, x)
    return _add(x, dropout(mlp.fn(taken), mlp.dropout_rate, training=mlp.training), mlp_kept)


def _attention(own: Any, x: Tensor, shapes: Shapes, *, class_only: bool) -> Tensor:
    """Return attention's mixed values before its projection, of tokens [T, D] or of class tokens."""
    heads, dim = own.heads, own.head_dim
    inner = heads * dim
    if class_only:
        query = linear_rows(own.to_qkv, _class_tokens(x, shapes), slice(inner)).view(-1, 1, heads, dim)
        queries = torch.split(query, [rows for rows, _ in shapes])
        others = _split(linear_rows(own.to_qkv, x, slice(inner, None)), shapes, (2, heads, dim))
        parts = [(query, *pair) for query, pair in zip(queries, others, strict=True)]
    else:
        parts = _split(own.to_qkv(x), shapes, (3, heads, dim))
    mixed = []
    for part in parts:
        query, key, value = (each.transpose(1, 2) for each in part)
        mixed.append(attend(query, key, value, own.scale).transpose(1, 2).reshape(-1, inner))
    return torch.cat(mixed)


def _class_tokens(x: Tensor, shapes: Shapes) -> Tensor:
    """Return the first tokens [ΣR, D] of tokens [T, D]."""
    parts = torch.split(x, [rows * length for rows, length in shapes])
    firsts = [part.view(*shape, -1)[:, 0] for part, shape in zip(parts, shapes, strict=True)]
    return torch.cat(firsts)


def _split(x: Tensor, shapes: Shapes, inner: tuple[int, int, int]) -> list[tuple[Tensor, ...]]:
    """Return for each set its 2 or 3 parts [R, n, heads, D] of projections [T, parts · heads · D]."""
    views = cast("tuple[Tensor, ...]", _Split.apply(x, shapes, inner))  # type: ignore[no-untyped-call]
    count = inner[0]
    return [views[start : start + count] for start in range(0, len(views), count)]


class _Split(torch.autograd.Function):
    """Views, whose gradients are written to their places in one tensor: autograd would stack and join them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shapes: Shapes, inner: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.inner = shapes, inner
        return tuple(part for each in _places(x, shapes, inner) for part in each.unbind(2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        first = gradients[0]
        tokens = sum(rows * length for rows, length in ctx.shapes)
        whole = first.new_empty(tokens, ctx.inner[0] * ctx.inner[1] * ctx.inner[2])
        count = ctx.inner[0]
        for number, place in enumerate(_places(whole, ctx.shapes, ctx.inner)):
            torch.stack(gradients[number * count : (number + 1) * count], dim=2, out=place)
        return whole, None, None


def _places(x: Tensor, shapes: Shapes, inner: tuple[int, int, int]) -> list[Tensor]:
    parts = torch.split(x, [rows * length for rows, length in shapes])
    return [part.view(*shape, *inner) for part, shape in zip(parts, shapes, strict=True)]


def _join(drawn: Sequence[Sequence[Any]], shapes: Shapes) -> list[_Kept | None]:
    """Return what of all sets' tokens the branches are computed for, from what is drawn for each set and branch."""
    if not drawn[0] or all(each is None for paths in drawn for each in paths):
        return [None] * len(drawn[0])
    rows, places, factors, scales, kept_shapes = [], [], [], [], []
    first = first_kept = 0
    for paths, (count, length) in zip(drawn, shapes, strict=True):
        if paths[0] is None:  # so few rows that all are kept
            device = next(path for others in drawn for path in others if path is not None).rows.device
            every = torch.arange(count, device=device).expand(len(paths), -1)
            chosen = KeptRows(every, every, torch.ones(len(paths), count, device=device))
        else:
            chosen = KeptRows(*(torch.stack(each) for each in zip(*paths, strict=True)))
        kept = chosen.rows.shape[1]
        # In four bytes a token and branch, which are kept until the backward pass.
        within = torch.arange(length, dtype=torch.int32, device=chosen.rows.device)
        rows.append((chosen.rows.int().unsqueeze(-1) * length + (within + first)).flatten(1))
        places.append((chosen.places.int().unsqueeze(-1) * length + (within + first_kept)).flatten(1))
        factors.append(chosen.factors.unsqueeze(-1).expand(-1, -1, length).flatten(1))
        scales.append(torch.full((kept * length, 1), count / kept, device=chosen.rows.device))
        kept_shapes.append((kept, length))
        first, first_kept = first + count * length, first_kept + kept * length
    joined = (torch.cat(each, dim=1).unbind() for each in (rows, places, factors))
    scale = torch.cat(scales)
    return [_Kept(KeptRows(*each), scale, kept_shapes) for each in zip(*joined, strict=True)]


def _add(x: Tensor, branch: Tensor, kept: _Kept | None) -> Tensor:
    """Return x with a branch added to the tokens that were kept for it."""
    if kept is None:
        return x + branch
    return cast("Tensor", _AddTokens.apply(x, branch, kept))  # type: ignore[no-untyped-call]


class _AddTokens(torch.autograd.Function):
    """`kept_rows.add_rows` with a factor for each set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, kept: _Kept) -> Tensor:
        ctx.kept, ctx.dtype = kept, branch.dtype
        return add_looked_up(x, branch, kept.rows.places, kept.rows.factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        taken = gradient.index_select(0, ctx.kept.rows.rows)
        scaled = torch.mul(taken, ctx.kept.scales, out=torch.empty_like(taken, dtype=ctx.dtype))
        return gradient, scaled, None
