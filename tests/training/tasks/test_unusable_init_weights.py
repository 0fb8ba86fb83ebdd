"""Initial weights that cannot be read: the error names setting and file, and nothing runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lafs_ray.errors import CheckpointError
from lafs_ray.training.tasks.init_weights import load_init_weights
from tests.training.builds import finetune
from tests.training.faces import tiny


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda path: path.write_bytes(b"no checkpoint"),
        lambda path: torch.save({"teacher": {"backbone.cls_token": torch.zeros(1)}}, path),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["missing", "damaged", "without landmarks", "without tensors"],
)
def test_landmark_weights__unusable_file(tmp_path: Path, face_set_path: str, make: Callable[[Path], object]) -> None:
    """A missing, damaged or foreign file is a CheckpointError that names it."""
    make(tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as raised:
        load_init_weights(tiny(tmp_path, face_set_path, f"landmarks.weights={tmp_path / 'w.pt'}"))
    assert str(tmp_path / "w.pt") in str(raised.value)


class Attack:
    """Pickled, it would write a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("key", ["start.transformer", "start.landmarks"])
def test_start__checkpoint_with_code_in_it(tmp_path: Path, key: str) -> None:
    """Code in a checkpoint is named and not run."""
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    torch.save({"teacher": {"cls_token": torch.zeros(1)}, "extra": Attack(proof)}, path)
    with pytest.raises(CheckpointError, match="could run code when loaded") as raised:
        load_init_weights(finetune(f"{key}={path}"))
    assert str(path) in str(raised.value)
    assert not proof.exists()


@pytest.mark.parametrize("key", ["start.transformer", "start.landmarks"])
def test_start__missing_file(tmp_path: Path, key: str) -> None:
    """A start that is not there is named."""
    with pytest.raises(CheckpointError, match="no such file") as raised:
        load_init_weights(finetune(f"{key}={tmp_path / 'nothing.pt'}"))
    assert raised.value.subject == f"{key}={tmp_path / 'nothing.pt'}"
