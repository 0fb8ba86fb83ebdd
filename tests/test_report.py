"""The report of each kind of run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import UserError
from tests.test_jobs import main_of
from tests.training.faces import face_jpegs, run, tiny

GRID = ("landmarks.source=grid", "landmarks.weights=null", "dino.centering=sinkhorn")


def arguments(folder: Path, faces: str) -> list[str]:
    write_pairs(str(folder / "pairs.bin"), face_jpegs(40, seed=5), [True, False] * 10)
    return [str(folder / "debug"), faces, str(folder / "pairs.bin"), str(folder / "report")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_report__supervised_run(tmp_path: Path, face_set_path: str) -> None:
    """Stage 1 and finetuning have no SSL diagnostics."""
    short = ("duration=2 steps", "optim.warmup=1 steps")
    run(tiny(tmp_path, face_set_path, *short, "run.name=debug", kind=FinetuneConfig))
    main_of("report")(arguments(tmp_path, face_set_path))
    assert names(tmp_path / "report") == ["accuracy.txt", "curves.png", "landmarks.png"]


def test_report__run_without_landmarks(tmp_path: Path, face_set_path: str) -> None:
    """DINO-face has no landmark CNN."""
    run(tiny(tmp_path, face_set_path, "duration=2 steps", "optim.warmup=1 steps", *GRID))
    main_of("report")(arguments(tmp_path, face_set_path))
    assert names(tmp_path / "report") == ["accuracy.txt", "curves.png"]


def test_report__earlier_report_is_kept(tmp_path: Path, face_set_path: str) -> None:
    """Without --force nothing is replaced; with it everything is."""
    run(tiny(tmp_path, face_set_path, "duration=1 steps", "optim.warmup=0 steps"))
    (tmp_path / "report").mkdir()
    earlier = tmp_path / "report" / "accuracy.txt"
    earlier.write_text("earlier")
    with pytest.raises(UserError, match="--force"):
        main_of("report")(arguments(tmp_path, face_set_path))
    assert (names(tmp_path / "report"), earlier.read_text()) == (["accuracy.txt"], "earlier")
    main_of("report")([*arguments(tmp_path, face_set_path), "--force"])
    assert "after training" in earlier.read_text()
