"""Landmarks cached through Ray are those of one process, and reach a run through Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lafs_ray.training.input_pipeline import local_stream
from tests.engine.test_ray_ingest import assert_same, inputs_of, through_ray
from tests.test_jobs import main_of
from tests.training.faces import write_face_set
from tests.transforms.faces import lively_cnn

# An actor starts in 3 s of a core, which on a crowded machine are minutes.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "cnn.pth"
    torch.save(lively_cnn(49).state_dict(), path)
    return str(path)


def test_two_actors__write_the_files_of_one_process(tmp_path: Path, weights: str, local_ray: None) -> None:
    """Byte for byte, beside the set."""
    (tmp_path / "set").mkdir()
    for name in "abc":
        write_face_set(tmp_path / "set" / f"{name}.rec", num_identities=4)
    job = main_of("cache_landmarks")
    job([weights, str(tmp_path / "set"), "--out", str(tmp_path / "one")])
    job([weights, str(tmp_path / "set"), "--workers", "2"])
    (beside,) = (tmp_path / "set").glob("landmarks-*")
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (beside / path.name).read_bytes(), path.name


def test_stream__with_cached_landmarks_is_that_of_debug_mode(
    tmp_path: Path, face_set_path: str, weights: str, local_ray: None
) -> None:
    """Bit by bit: landmarks travel with their records through Ray."""
    cache = str(tmp_path / "cache")
    main_of("cache_landmarks")([weights, face_set_path, "--out", cache])
    cached = [f"landmarks.{key}" for key in ("source=cached", f"weights={weights}")]
    cached.append(f"landmarks.cache={cache}")
    inputs = inputs_of(tmp_path / "run", face_set_path, "ingest.actors_per_worker=1", *cached)
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, 8))
    assert_same(through_ray(inputs, 0, 1, 0, 8), expected, slice(None))
