"""Landmarks that MediaPipe finds on synthetic faces, where `make mediapipe-environment` has been run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.external_landmarks import ExternalOptions, import_landmarks
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.points_table import PointsTable
from lafs_ray.errors import ConfigError
from lafs_ray.methods.landmark_regression import EYE_DISTANCE_PX
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import write_faces
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.landmarks import layout_positions, true_landmarks
from tests.test_jobs import main_of

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-mediapipe/bin/python"


def test_job__without_mediapipe(tmp_path: Path, face_set_path: str) -> None:
    """In the package's own environment the job names the environment that it needs."""
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="make mediapipe-environment"):
        main_of("mediapipe_landmarks")([face_set_path, str(tmp_path / "points")])


@pytest.mark.mediapipe
@pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: run `make mediapipe-environment`")
def test_job__on_synthetic_faces(tmp_path: Path) -> None:
    """Landmarks of a set and of a second, continued call are near the true ones, and become a cache."""
    write_faces(str(tmp_path / "faces"), num_identities=8, images_per_identity=2, seed=3)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), "jobs/mediapipe_landmarks.py", str(tmp_path / "faces"), str(tmp_path / "points")]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    faces, table = open_faces(str(tmp_path / "faces")), PointsTable(str(tmp_path / "points"))
    count, _ = import_landmarks(faces, "rgb", table, str(tmp_path / "cache"), ExternalOptions(max_missing=8))
    assert count == 196
    assert table.tool_version == "0.10.21"
    (rows,) = table.rows()
    pairs = [(number // 2, number % 2) for number in np.flatnonzero(rows.is_found).tolist()]
    layout = layout_positions("facemesh")
    true = np.stack([true_landmarks(sample_identity(3, i), sample_capture(3, i, j), layout) for i, j in pairs])
    error = np.linalg.norm(rows.landmarks - true, axis=-1).mean() / EYE_DISTANCE_PX
    # Renderings, for a network trained on photos; a wrong order of the landmarks gives 0.9.
    assert error < 0.25
