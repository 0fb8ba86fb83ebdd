"""Reader of tests/golden: inputs and outputs recorded from the released code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.models.margin import MixedLabels

ROOT = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One recording: hyperparameters and tolerances, inputs, outputs and network parameters."""

    meta: dict[str, Any]
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    params: dict[str, NDArray[Any]]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _params(path: Path) -> dict[str, NDArray[Any]]:
    """Read parameters; int8 arrays are multiplied by their `<name>::scale`."""
    raw = _arrays(path)
    return {
        name: (value.astype(np.float32) * np.float32(raw[f"{name}::scale"]) if f"{name}::scale" in raw else value)
        for name, value in raw.items()
        if not name.endswith("::scale")
    }


def load_case(name: str) -> GoldenCase:
    """Load `tests/golden/<name>`, with the parameters of the cases it includes."""
    folder = ROOT / name
    meta = json.loads((folder / "meta.json").read_text())
    params: dict[str, NDArray[Any]] = {}
    for include in meta.get("params_include", []):
        included = _params(ROOT / Path(include["file"]).relative_to("shared"))
        prefix = include.get("keep_prefix") or ""
        params |= {key: value for key, value in included.items() if key.startswith(prefix)}
    params |= _params(folder / "params.npz")
    return GoldenCase(meta, _arrays(folder / "in.npz"), _arrays(folder / "out.npz"), params)


def golden_head(case: GoldenCase, role: str) -> DINOHead:
    """Build the recorded DINO head of the `student` or the `teacher`."""
    meta, prefix = case.meta, f"{role}/"
    head = DINOHead(
        meta["in_dim"],
        meta["out_dim"],
        hidden_dim=meta["hidden_dim"],
        bottleneck_dim=meta["bottleneck_dim"],
        num_layers=meta["nlayers"],
        frozen_norm=meta["norm_last_layer"],
    )
    head.load_state_dict(
        {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in case.params.items()
            if name.startswith(prefix)
        }
    )
    return head


def to_unit_range(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert uint8 0…255 to float32 in [-1, 1], in the released code's order of operations."""
    return (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def mixed_labels(soft: NDArray[np.float32]) -> MixedLabels:
    """Convert dense soft targets [B, C] of at most two classes a row to `MixedLabels`."""
    assert ((soft > 0).sum(axis=1) <= 2).all(), "a mixture of three"
    share, classes = torch.from_numpy(soft).topk(2, dim=1)
    return MixedLabels(classes[:, 0], classes[:, 1], share[:, 0])
