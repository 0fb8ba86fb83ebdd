"""The file of one checkpoint: its name in a run's folder, writing, and reading.

A checkpoint is one file, so it is there completely or not at all, on a disk and on an object store alike. Nothing
executes when it is loaded (`weights_only`).
"""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lafs_ray import __version__
from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.torch_file import load_torch

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})\.pt")


def checkpoint_path(run: str, step: int) -> str:
    """Return where a run's checkpoint of a step lies."""
    return filesystem.join(run, "checkpoints", f"step-{step:08d}.pt")


def checkpoint_steps(run: str) -> list[int]:
    """Return the steps of the checkpoints in a run's folder, oldest first."""
    names = filesystem.list_names(filesystem.join(run, "checkpoints"))
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def newest_checkpoint(path: str) -> str:
    """Return the newest checkpoint of a run's folder; any other path is returned as it is.

    Raises:
        CheckpointError: the folder holds no checkpoint.
    """
    steps = checkpoint_steps(path)
    if not steps and not filesystem.exists(filesystem.join(path, "config.json")):
        return path
    if not steps:
        raise CheckpointError(
            path,
            found="a run without checkpoints",
            expected="at least one checkpoint",
            fix="let the run reach its first checkpoint, or name another",
        )
    return checkpoint_path(path, steps[-1])


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it computes with."""
    return {
        "lafs_ray": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def save_checkpoint(uri: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with the format's number and `versions`.

    Raises:
        DataError: the storage refuses it.
    """
    with filesystem.atomic_write(uri) as file:
        try:
            torch.save({"format": FORMAT, "versions": versions(), **content}, file)
        except RuntimeError as error:
            # torch's writer hides the cause (a full disk, Ctrl-C) behind an error about its own position in the file.
            if error.__context__ is not None:
                raise error.__context__ from None
            raise


def load_checkpoint(uri: str) -> dict[str, Any]:
    """Read a checkpoint of ours; no code in it is ever run.

    Raises:
        CheckpointError: it is missing, damaged, not ours, or of a newer format.
    """
    fix = "give a checkpoint that lafs_ray wrote (<run>/checkpoints/step-*.pt)"
    if not filesystem.exists(uri):
        raise CheckpointError(uri, found="no such file", expected="a checkpoint", fix=fix)
    try:
        content = load_torch(io.BytesIO(filesystem.read_bytes(uri)))
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(uri, found=reason, expected="a complete checkpoint", fix=fix) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = f"format {content.get('format')}" if isinstance(content, dict) else "something else"
        raise CheckpointError(uri, found=found, expected=f"format {FORMAT}", fix=fix)
    return content
