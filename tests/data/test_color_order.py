"""A packed set's manifest names the color order of its images; other sets have the order that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.eval_sets import EvalFaces, color_order_of, open_images, open_labeled
from lafs_ray.evaluation.whitening import sample_faces
from tests.test_jobs import main_of
from tests.training.faces import run, tiny


@pytest.fixture(scope="module")
def packed(face_set_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A packed copy of the synthetic faces, whose sources are said to decode to BGR."""
    path = str(tmp_path_factory.mktemp("packed") / "set")
    main_of("pack")([face_set_path, path, "--color-order", "bgr"])
    return path


def test_evaluations__take_the_order_of_a_packed_set(packed: str, face_set_path: str) -> None:
    """Whatever is asked for, and all ways to open a set agree; another set is as the user says."""
    source = open_images(packed)
    assert color_order_of(source, "rgb") == "bgr"
    assert color_order_of(open_images(face_set_path), "bgr") == "bgr"
    swapped = EvalFaces(source, "rgb").read(0, 4)[..., ::-1]
    for faces in (open_labeled(packed, "rgb").faces, sample_faces(packed, 8).faces):
        assert np.array_equal(faces.read(0, 4), swapped)


def test_embed__names_the_order_of_a_packed_set(packed: str, face_set_path: str, tmp_path: Path) -> None:
    """The table says how the faces were decoded, as the audit shows them again by it."""
    run(tiny(tmp_path, face_set_path, "duration=1 steps", "optim.warmup=0 steps"))
    out = str(tmp_path / "vectors.parquet")
    main_of("embed")([str(tmp_path / "debug"), packed, out])
    assert pq.read_schema(out).metadata[b"faces_color_order"] == b"bgr"
