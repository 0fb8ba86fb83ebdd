"""What a run was started on: versions, commit, processor and GPUs, as `config.json` keeps them."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import lafs_ray
from lafs_ray.training.checkpoint.checkpoint_file import versions

_LIMIT_S = 5


def environment() -> dict[str, Any]:
    """Return versions, commit (None outside a checkout), processor, logical cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {**versions(), "commit": _commit(), "cpu": _processor(), "cores": os.cpu_count(), "gpus": gpus}


def _commit() -> str | None:
    """Return the commit of the checkout that the package lies in, marked where files differ from it."""
    root = Path(lafs_ray.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
        )
        return done.stdout.strip()
    return None


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
