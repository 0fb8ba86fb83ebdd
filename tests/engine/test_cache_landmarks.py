"""Landmarks cached through Ray are those of one process, and reach a run through Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lafs_ray.models.landmarks import LandmarkCNN
from tests.engine.test_ingest import assert_same, inputs_of, through_ray
from tests.test_jobs import main_of
from tests.training.faces import write_face_set

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=8, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


def test_two_actors__write_the_files_of_one_process(tmp_path: Path, ray_session: None) -> None:
    """Byte for byte; and a rank's stream through Ray is that of debug mode, landmarks included."""
    from lafs_ray.training.stream import local_stream

    (tmp_path / "set").mkdir()
    for name in "abc":
        write_face_set(tmp_path / "set" / f"{name}.rec", num_identities=4)
    torch.manual_seed(0)
    weights = tmp_path / "cnn.pth"
    torch.save(LandmarkCNN(49, width=0.25).state_dict(), weights)
    job = main_of("cache_landmarks")
    job([str(weights), str(tmp_path / "set"), "--out", str(tmp_path / "one")])
    job([str(weights), str(tmp_path / "set"), "--workers", "2"])
    (beside,) = (tmp_path / "set").glob("landmarks-*")
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (beside / path.name).read_bytes(), path.name
    cached = ["landmarks.source=cached", f"landmarks.weights={weights}"]
    inputs = inputs_of(tmp_path / "run", tmp_path / "set", "ingest.actors_per_worker=2", *cached)
    expected = list(local_stream(inputs.faces, inputs.plan, inputs.cropper(), 0, 12))
    assert_same(through_ray(inputs, 0, 1, 0, 12), expected, slice(None))
