"""Checkpoints under the recorded names of published ones, small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.golden_cases import ROOT

# The recorded widths, and those that stand for them: embedding, heads together, MLP, prototypes.
SMALL = {768: 24, 704: 64, 2112: 192, 2048: 16, 100_000: 50, 256: 8}


def recorded(model: str) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype of each tensor of a full-size model, in its order."""
    keys = json.loads((ROOT / "c0_full_size" / "keys.json").read_text())[model]["keys"]
    return [(name, shape, dtype) for name, shape, dtype, _ in keys]


def small(model: str, prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under a recorded model's names; widths as in `SMALL`, the CNN's as recorded.

    Variances are positive, so that a network with these weights computes.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape, dtype in recorded(model):
        is_cnn = name.startswith("stn.")
        size = shape if is_cnn else [SMALL.get(side, side) for side in shape]
        if dtype == "int64":
            value = torch.randint(9, size, generator=generator)
        elif name.endswith("running_var"):
            value = torch.rand(size, generator=generator) + 0.5
        else:
            value = torch.randn(size, generator=generator) * (0.3 if len(size) == 4 else 0.1)
        state[prefix + name] = value
    return state


def pretraining(wrap: str = "", seed: int = 0) -> dict[str, Tensor]:
    """A small student (wrap `module.`) or teacher as published: backbone, class weight, head."""
    backbone = small("backbone_with_land_false", f"{wrap}backbone.", seed)
    return backbone | small("dino_head_768_100000_student", f"{wrap}head.", seed + 1)


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names, dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
