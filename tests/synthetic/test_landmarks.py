from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.external_landmarks import ExternalOptions, import_landmarks
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.facemesh import FACEMESH_POINTS, mean_facemesh, spread_points
from lafs_ray.data.points_table import PointsTable
from lafs_ray.errors import ConfigError
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import write_faces
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.landmark_table import write_landmarks
from lafs_ray.synthetic.landmarks import layout_positions, thin_plate_spline, true_landmarks
from tests.synthetic.test_renderer import true_landmarks as projected_features

# MediaPipe's numbers of what `projected_features` returns: corners of the eyes, tip of the nose, corners of the mouth.
FEATURES = (33, 133, 362, 263, 1, 61, 291)


def test_facemesh__is_a_fixed_choice() -> None:
    """196 different points of 468, with a position each, in rows from top to bottom and from left to right."""
    assert len(set(FACEMESH_POINTS)) == len(FACEMESH_POINTS) == 196
    assert set(FEATURES) <= set(FACEMESH_POINTS)
    rows = mean_facemesh().reshape(14, 14, 2)
    assert (np.diff(rows[..., 0], axis=1) >= 0).all()
    assert (np.diff(rows[..., 1].mean(axis=1)) > 0).all()


def test_spread_points__lie_far_apart_on_the_inner_face() -> None:
    """Fewer landmarks are those of more, without a point beside another or on the rim; 196 are all."""
    assert spread_points(196) == tuple(range(196))
    few, more = spread_points(25), spread_points(49)
    assert set(few) < set(more)
    assert list(more) == sorted(more)
    mean = mean_facemesh()
    chosen = mean[list(more)]
    distances = np.linalg.norm(chosen[:, None] - chosen, axis=-1) + 100 * np.eye(49)
    assert distances.min() > 6
    assert ((chosen > (22, 32)) & (chosen < (90, 108))).all()


@pytest.mark.parametrize("count", [0, 190, 197])
def test_spread_points__impossible_numbers(count: int) -> None:
    """More than there are on the inner face, but not all, are refused."""
    with pytest.raises(ConfigError, match="or 196, all"):
        spread_points(count)


def test_thin_plate_spline__is_exact_at_its_knots() -> None:
    """Knots go to their targets; an affine map is continued everywhere."""
    generator = np.random.default_rng(0)
    knots, elsewhere = (generator.uniform(0, 112, (count, 2)).astype(np.float32) for count in (12, 30))
    target = generator.uniform(0, 112, (12, 2)).astype(np.float32)
    assert thin_plate_spline(knots, target, knots) == pytest.approx(target, abs=1e-2)  # float32 results
    turn = np.array([[0.8, -0.3], [0.2, 1.1]], np.float32)
    affine = thin_plate_spline(knots, knots @ turn + 5, elsewhere)
    assert affine == pytest.approx(elsewhere @ turn + 5, abs=1e-2)


@pytest.mark.parametrize("number", range(6))
def test_true_landmarks__lie_on_the_features(number: int) -> None:
    """Corners of eyes and mouth and the tip of the nose are where the renderer paints them, in every pose."""
    identity, capture = sample_identity(0, number), sample_capture(0, number, 1)
    landmarks = true_landmarks(identity, capture, layout_positions("facemesh"))
    found = landmarks[[FACEMESH_POINTS.index(point) for point in FEATURES]]
    # The mean face is symmetric and rounded, the layout neither: up to 2 px of 35 between the eyes.
    distances = np.linalg.norm(found - 0.5 - projected_features(identity, capture), axis=1)
    assert distances.max() < 2.5
    assert distances.mean() < 1.2


def test_layout__that_is_none() -> None:
    """A grid needs a square number."""
    assert layout_positions("25").shape == (25, 2)
    for name in ("24", "mesh", "-25", "0"):
        with pytest.raises(ConfigError, match="square number"):
            layout_positions(name)


def test_write_landmarks__becomes_a_cache(tmp_path: Path) -> None:
    """The true landmarks of a set of several files are matched with their records and images."""
    folder = str(tmp_path / "faces")
    write_faces(folder, num_identities=3, images_per_identity=2, seed=1, num_shards=2)
    uri = write_landmarks(folder, "25", images_per_identity=2, seed=1)
    faces = open_faces(folder)
    assert import_landmarks(faces, "rgb", PointsTable(uri), str(tmp_path / "cache"), ExternalOptions()) == (25, 0)
    expected = true_landmarks(sample_identity(1, 2), sample_capture(1, 2, 1), layout_positions("25"))
    table = pq.read_table(uri).to_pydict()
    assert np.array_equal(np.array(table["landmarks"][-1], np.float32), expected)
    assert table["shard"][-1] == "train-00001-of-00002.rec"
