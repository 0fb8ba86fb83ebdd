"""timm's own weights of a ViT, adapted to the tokens and positions of a student of its blocks.

timm's networks see patches of q pixels in its own normalization; ours see patches of p pixels in [-1, 1]. Both changes
are linear, so the patch embedding takes them up: it computes what timm's does of the patch resized to q pixels. (timm's
`resample_patch_embed` inverts the opposite resizing, and is 30 times as far off on smooth images of half the size.)
Shape letters: D width, q and p sides of patches, g side of timm's grid.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lafs_ray.compat import import_timm
from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.train import TokenFeatures
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.timm_names import from_timm
from lafs_ray.models.fvit import FViTSize

_MARKS = ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token", "blocks.0.norm1.weight")
POSITIONS, PATCHES = "pos_embedding", ("patch_to_embedding.weight", "patch_to_embedding.bias")


@dataclass(frozen=True)
class TokenLayout:
    """The tokens that weights are adapted to.

    Args:
        num_tokens: N.
        patch_size: p, in pixels.
        features: numbers of a token; only pixels can take a patch embedding.
        grid: whether tokens are the cells of the plain grid, row by row.
        landmarks: positions in pixels [N, 2], (x, y), that all faces have, or their mean; None: unknown.
    """

    num_tokens: int
    patch_size: int
    features: TokenFeatures
    grid: bool
    landmarks: Tensor | None = None


def is_timm_state(state: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have timm's names of a ViT."""
    return all(name in state for name in _MARKS)


def adapt_timm_weights(
    state: Mapping[str, Tensor], size: FViTSize, layout: TokenLayout, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt timm's weights of a ViT.

    Args:
        state: under timm's names, as timm distributes it.
        size: of the student, with timm's name.
        layout: of its tokens.
        source: the setting and the file, for messages.

    Returns:
        Tensors under the student's names, without those that have to start new; and what became of each part.

    Raises:
        CheckpointError: a patch embedding or positions of no ViT over square images of three colors.
    """
    state = {name: tensor.float() for name, tensor in state.items()}
    patches, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if patches.ndim != 4 or patches.shape[1] != 3 or patches.shape[2] != patches.shape[3]:
        raise _unsquare(source, "patch_embed.proj.weight", patches, "[D, 3, q, q]")
    found = from_timm(state, size) if positions.ndim == 3 else {}
    cells = found.get(POSITIONS, positions)[:, 1:]
    side = math.isqrt(cells.shape[1])
    if positions.ndim != 3 or side**2 != cells.shape[1] or side == 0:
        raise _unsquare(source, "pos_embed", positions, "[1, g² + 1, D], the cells of a square and the class token")
    q, p = patches.shape[-1], layout.patch_size
    if layout.features == "pixels":
        assert size.timm is not None
        embedding = _patch_embedding(patches, found[PATCHES[1]], size.timm, layout)
        found |= zip(PATCHES, embedding, strict=True)
        report = ["patch embedding taken" if p == q else f"patch embedding resampled from {q} to {p} px"]
    else:
        found = {name: tensor for name, tensor in found.items() if name not in PATCHES}
        report = [f"patch embedding starts new: the file's reads pixels, not {layout.features}"]
    first, new_side = found.pop(POSITIONS)[:, :1], math.isqrt(layout.num_tokens)
    if layout.grid:
        moved = _grid_positions(cells, new_side)
        resized = f"interpolated from {side} x {side} cells to {new_side} x {new_side}"
        report.append(f"positions {'taken' if new_side == side else resized}")
    elif layout.landmarks is not None:
        moved = _positions_at(cells, layout.landmarks)
        report.append(f"positions sampled at the landmarks, from {side} x {side} cells")
    else:
        # Only the sum of the class token and its position is ever used.
        found["cls_token"] = found["cls_token"] + first
        return found, [*report, "positions start new: landmarks of a CNN have no places on the file's grid"]
    found[POSITIONS] = torch.cat((first, moved), dim=1)
    return found, report


def _unsquare(source: str, name: str, tensor: Tensor, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{source}, {name}",
        found=f"shape {list(tensor.shape)}",
        expected=expected,
        fix="name timm's weights of a ViT over square images",
    )


def _patch_embedding(weight: Tensor, bias: Tensor, name: str, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Return weight [D, p·p·3] and bias [D] for tokens of pixels in [-1, 1]."""
    side, before = layout.patch_size, weight.shape[-1]
    if side != before:
        pixels = torch.eye(side**2).reshape(-1, 1, side, side)
        resized = F.interpolate(pixels, size=(before, before), mode="bicubic", antialias=True)
        weight = torch.einsum("dcij,nij->dcn", weight, resized[:, 0]).reshape(*weight.shape[:2], side, side)
    config = import_timm().models.get_pretrained_cfg(name)
    mean, std = (torch.tensor(getattr(config, part)) for part in ("mean", "std"))
    # timm's input for a pixel x in [-1, 1] is ((x + 1) / 2 - mean) / std.
    bias = bias + (weight.sum(dim=(2, 3)) * ((0.5 - mean) / std)).sum(dim=1)
    weight = weight / (2 * std)[:, None, None]
    # Patches at landmarks run along x first, those of the grid along y (`models.patch_sampling`).
    axes = (0, 2, 3, 1) if layout.grid else (0, 3, 2, 1)
    return weight.permute(axes).flatten(1), bias


def _grid_positions(cells: Tensor, side: int) -> Tensor:
    """Interpolate positions [1, g², D] to another grid, as timm does."""
    resample = importlib.import_module("timm.layers").resample_abs_pos_embed
    return cast("Tensor", resample(cells, [side, side], num_prefix_tokens=0))


def _positions_at(cells: Tensor, landmarks: Tensor) -> Tensor:
    """Sample positions [1, g², D] bilinearly at landmarks [N, 2] in pixels; beyond the outer cells' centers theirs."""
    side = math.isqrt(cells.shape[1])
    grid = cells.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    places = (landmarks.float() / IMAGE_SIZE * 2 - 1)[None, None]
    sampled = F.grid_sample(grid, places, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T[None]
