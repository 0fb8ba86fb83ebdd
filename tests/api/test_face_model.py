"""The model of the Python interface: inputs are checked, and results are those of the network."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import lafs_ray
from lafs_ray.api.images import as_pixels
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.evaluation.embed import embed_chunk
from lafs_ray.synthetic.datasets import contact_sheet

FACES = contact_sheet(0, range(6), 1).reshape(6, 112, 112, 3)


@pytest.fixture(scope="module")
def model() -> lafs_ray.FaceModel:
    return lafs_ray.create_model("fvit_tiny", num_tokens=16, landmark_cnn_width=0.25)


def test_import__is_light() -> None:
    """`import lafs_ray` imports neither torch nor NumPy nor Ray."""
    program = "import sys, lafs_ray; print(sorted({'torch', 'numpy', 'ray', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_exports__are_all_there() -> None:
    """Each exported name can be imported; another one is an AttributeError."""
    assert all(getattr(lafs_ray, name) is not None for name in lafs_ray.__all__)
    with pytest.raises(AttributeError, match="pretrian"):
        lafs_ray.pretrian  # noqa: B018


def test_embed__is_that_of_the_evaluation(model: lafs_ray.FaceModel) -> None:
    """The flip test adds the mirror image's embedding, bit by bit as `lafs embed --flip` does."""
    both = embed_chunk(model.network, FACES)
    np.testing.assert_array_equal(model.embed(FACES, flip=False, normalized=False), both[:, 0])
    np.testing.assert_array_equal(model.embed(FACES, normalized=False), both.sum(axis=1))
    np.testing.assert_allclose(np.linalg.norm(model.embed(FACES), axis=1), 1, rtol=1e-6)


def forms(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The same faces in every form that `as_pixels` takes."""
    paths = []
    for number, face in enumerate(FACES):
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), face[:, :, ::-1])
    return {
        "list": ([*FACES], {}),
        "channels first": (FACES.transpose(0, 3, 1, 2), {}),
        "tensor": (torch.from_numpy(FACES), {}),
        "PIL": ([Image.fromarray(face) for face in FACES], {}),
        "paths": (paths, {}),
        "BGR": (FACES[..., ::-1], {"color_order": "bgr"}),
        "float 0..255": (FACES.astype(np.float32), {"value_range": "0..255"}),
        "float 0..1": (FACES.astype(np.float64) / 255, {"value_range": "0..1"}),
        "float -1..1": (torch.from_numpy(FACES).float() / 127.5 - 1, {"value_range": "-1..1"}),
    }


def test_as_pixels__of_every_form(tmp_path: Path) -> None:
    """Arrays, tensors, PIL images and files of the same faces give the same pixels."""
    expected = as_pixels(FACES)
    assert expected.shape == (6, 3, 112, 112)
    for name, (images, options) in forms(tmp_path).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = as_pixels(images, **options)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=name)
    assert as_pixels(FACES[0]).shape == (1, 3, 112, 112)


@pytest.mark.parametrize(
    ("images", "options", "found", "fix"),
    [
        (np.zeros((2, 96, 96, 3), np.uint8), {}, "96x96 pixels", "resize=True"),
        (np.zeros((2, 96, 112, 3), np.uint8), {"resize": True}, "112x96 pixels", "lafs align"),
        (FACES / 255, {}, "float64 values from 0", "value_range='0..1'"),
        (FACES / 127.5 - 1, {}, "float64 values from -1", "value_range='-1..1'"),
        (FACES * 1.0, {"value_range": "0..1"}, "float64 values", "right value_range"),
        (FACES / 255, {"value_range": "0..255"}, "float64 values", "value_range='0..1'"),
        (FACES[..., 0], {}, "shape [6, 112, 112]", "three channels"),
        (FACES[:0], {}, "shape [0, 112, 112, 3]", ""),
        ([], {}, "empty list", ""),
        (np.full((1, 112, 112, 3), np.nan), {"value_range": "0..1"}, "nan", ""),
        (3, {}, "a int", ""),
        ("nowhere.jpg", {}, "No such file", "path"),
    ],
)
def test_as_pixels__refusals(images: Any, options: dict[str, Any], found: str, fix: str) -> None:
    """Another size, range or shape is named with what to do; nothing is guessed."""
    with pytest.raises(DataError) as caught:
        as_pixels(images, **options)
    assert found in caught.value.found
    assert fix in caught.value.fix


def test_as_pixels__swapped_colors_are_named() -> None:
    """BGR faces passed as RGB give a warning with the argument; RGB ones give none."""
    with pytest.warns(UserWarning, match="color_order='bgr'"):
        as_pixels(FACES[..., ::-1])
    with pytest.warns(UserWarning, match="color_order='bgr'"):
        as_pixels([*FACES[..., ::-1]])


def test_landmarks_attention_plot(model: lafs_ray.FaceModel) -> None:
    """Landmarks lie on the face, attention sums to one, a plot has a panel for each face."""
    points = model.landmarks(FACES)
    assert points.shape == (6, 16, 2)
    assert points.min() >= 0
    assert points.max() <= 111
    weights = model.attention(FACES)
    assert weights.shape == (6, 4, 17, 17)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    for attention in (False, True):
        figure = model.plot(FACES, attention=attention)
        assert sum(bool(axes.images) for axes in figure.axes) == 6


def test_grid__has_no_landmarks() -> None:
    """A network on a grid attends to cells; asking for landmarks is refused."""
    grid = lafs_ray.create_model("fvit_tiny", num_tokens=49, patch_size=16, landmark_cnn=None)
    with pytest.raises(ConfigError, match="landmarks"):
        grid.landmarks(FACES)
    assert sum(bool(axes.images) for axes in grid.plot(FACES, attention=True).figure.axes) == 6


def test_create_model__unknown_names() -> None:
    """Names and arguments that there are not are named."""
    with pytest.raises(ConfigError, match="fvit_huge"):
        lafs_ray.create_model("fvit_huge")
    with pytest.raises(ConfigError, match="num_landmarks"):
        lafs_ray.create_model("fvit_tiny", num_landmarks=4)


def test_load__neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that cannot be downloaded is refused with both places, without a traceback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"owner/nothing") as caught:
        lafs_ray.load("owner/nothing")
    assert "no such file or folder; from the Hub: " in caught.value.found
