"""One flipped bit anywhere in a file of weights is named, or changes nothing that is read."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lafs_ray.errors import CheckpointError, UserError
from lafs_ray.models.checkpoints.safetensors_file import read_weights, write_weights
from lafs_ray.models.checkpoints.state_dicts import hash_tensors, read_checkpoint
from lafs_ray.training.checkpoint.checkpoint_file import FORMAT, load_checkpoint
from tests.models.checkpoints.test_safetensors_file import weights
from tests.models.published import pretraining

FLIPS = 400


def own(path: Path) -> str:
    return hash_tensors(load_checkpoint(str(path))["model"])


def published(path: Path) -> str:
    return hash_tensors(read_checkpoint(path)["teacher"])


def tensors_and_description(path: Path) -> str:
    read = read_weights(str(path))
    assert read is not None
    return hash_tensors(read.state.backbone) + str(replace(read, state=None, source="", step=None))  # type: ignore[arg-type]


def write_own(path: Path) -> None:
    torch.save({"format": FORMAT, "model": {"w": torch.randn(60, 50)}, "step": 3}, path)


def write_published(path: Path) -> None:
    torch.save({"teacher": pretraining()}, path)


def write_safetensors(path: Path) -> None:
    write_weights(str(path), weights())


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("step-00000003.pt", write_own, own),
        ("published.pth", write_published, published),
        ("lafs.safetensors", write_safetensors, tensors_and_description),
    ],
)
def test_read__one_flipped_bit(
    tmp_path: Path, name: str, write: Callable[[Path], None], read: Callable[[Path], Any]
) -> None:
    """Every flip raises a `UserError` that names the file, or leaves all values as they were."""
    path = tmp_path / name
    write(path)
    content, sound = path.read_bytes(), read(path)
    generator = np.random.default_rng(7)
    named = 0
    for position in generator.integers(len(content), size=FLIPS).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except UserError as error:
            found, named = None, named + (name in str(error))
        assert found in (sound, None), f"a flipped bit at byte {position} was read as other values"
    assert named > FLIPS / 2


def test_load_checkpoint__zeros_in_a_tensor(tmp_path: Path) -> None:
    """4 KB of zeros inside a tensor, which torch reads without a word, are named."""
    path = tmp_path / "step-00000003.pt"
    write_own(path)
    content = bytearray(path.read_bytes())
    content[4000:8096] = bytes(4096)
    assert torch.load(io.BytesIO(content), weights_only=True)["step"] == 3
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt\n.*checksum of .*data/0 does not match"):
        load_checkpoint(str(path))
