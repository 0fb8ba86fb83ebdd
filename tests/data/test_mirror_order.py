from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.data.landmark_template import grid_template
from lafs_ray.data.mirror_order import MirrorOrder, mirror_order
from lafs_ray.synthetic.landmarks import layout_positions


def test_mirror_order__of_a_grid_reverses_its_rows() -> None:
    """Landmarks of the built-in template, whose middle is that of the image; some pixels aside it is the same."""
    expected = np.arange(25).reshape(5, 5)[:, ::-1].reshape(-1)
    for aside in (0.0, 0.5, -3.0):
        order = mirror_order(grid_template(25) + np.array([aside, 0]))
        assert order.nearest.tolist() == expected.tolist()
        # The grid's middle is 56, the image's 56.5; in mirror images all lie as far aside, which is twice as far on it.
        np.testing.assert_allclose(order.shift_px, np.broadcast_to([1 - 2 * aside, 0], (25, 2)), atol=1e-4)


@pytest.mark.parametrize("aside", [-3.0, -1.0, 0.0, 2.0, 4.0])
def test_mirror_order__of_the_mesh_of_a_face(aside: float) -> None:
    """Mirroring twice ends where it began, wherever the face lies; the mesh itself is not quite symmetric."""
    order = mirror_order(layout_positions("facemesh") + np.array([aside, 0])).nearest
    assert (order[order] == np.arange(196)).mean() > 0.95


def test_mirror_order__of_a_layout_that_is_not_symmetric() -> None:
    """Each landmark of the mirrored face is the nearest one of the face."""
    positions = np.array([[30.0, 40.0], [84.0, 41.0], [50.0, 80.0]])
    # In mirrored places: (83, 40), (29, 41) and (63, 80).
    order = mirror_order(positions)
    assert order.nearest.tolist() == [1, 0, 2]
    # The mean of mirror images, mirrored.
    np.testing.assert_allclose(positions[order.nearest] + order.shift_px, [[83, 40], [29, 41], [63, 80]], atol=1e-4)


def test_with_mirrored__keeps_the_points_of_the_face() -> None:
    """The second half has the same points in another order, shifted."""
    landmarks = np.arange(12, dtype=np.float16).reshape(2, 3, 2)
    shift = np.array([[0.5, 0], [0, 0], [-1, 2]], dtype=np.float32)
    both = MirrorOrder(np.array([1, 0, 2]), shift).with_mirrored(landmarks)
    assert both.dtype == np.float16
    np.testing.assert_array_equal(both[:, 0], landmarks)
    np.testing.assert_array_equal(both[:, 1], landmarks[:, [1, 0, 2]] + shift)
