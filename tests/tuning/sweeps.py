"""A tiny few-shot sweep over a small set of faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lafs_ray.config.loader import parse_overrides, resolve
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.trial_config import Sweep, read_sweep
from tests.training.faces import FINETUNE, ROOT, TINY_FINETUNE, TINY_PRETRAIN, face_jpegs

SETTINGS = {**parse_overrides(TINY_FINETUNE), "duration": "4 steps", "optim.warmup": "1 steps"}
PRETRAIN_SETTINGS = {
    **parse_overrides(TINY_PRETRAIN),
    "duration": "4 steps",
    "optim.warmup": "1 steps",
    "log.every_steps": 1,
}


def pair_file(folder: Path, name: str = "select.bin", seed: int = 1) -> str:
    """Twenty pairs of images that no training set has, a same and a different one each fold."""
    path = folder / name
    write_pairs(str(path), face_jpegs(40, seed=seed), [True, False] * 10)
    return str(path)


def tree(folder: Path, data: Path | str, **changes: Any) -> dict[str, Any]:
    """The settings of the sweep."""
    settings = {**SETTINGS, "data.path": str(data), **changes.pop("settings", {})}
    objective = {"pairs": pair_file(folder), "reports": 2, **changes.pop("objective", {})}
    return {
        "name": "sweep",
        "storage": str(folder / "sweeps"),
        "task": "finetune",
        "base": str(ROOT / FINETUNE),
        "settings": settings,
        "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
        "objective": objective,
        "budget": {"trials": 3},
        "scheduler": {"kind": "none"},
        **changes,
    }


def sweep(folder: Path, data: Path | str, **changes: Any) -> Sweep:
    """The sweep, resolved and read."""
    return read_sweep(resolve(SweepConfig, tree(folder, data, **changes), "sweep"))
