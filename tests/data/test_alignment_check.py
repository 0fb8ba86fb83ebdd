"""A sample of images separates aligned faces from others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.data.alignment_check import ALIGNED, check_alignment, check_set, correlations_of
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import encode_jpeg
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.inspection import inspect_faces
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.renderer import render_face
from tests.data.packing.sets import packed, write_plain

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def faces() -> list[Picture]:
    """Generated faces, 60 identities."""
    return [render_face(sample_identity(0, number), sample_capture(0, number, 0)) for number in range(60)]


def moved(scale: float, turn: float = 0.0, shift: tuple[float, float] = (0, 0)) -> Callable[[Picture], Picture]:
    """Scale and turn around the middle, then shift; the border is repeated, as a photo goes on there."""
    matrix = cv2.getRotationMatrix2D((55.5, 55.5), turn, scale)
    matrix[:, 2] += shift
    return lambda face: np.asarray(cv2.warpAffine(face, matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE))


@pytest.mark.parametrize("half", [0, 30])
def test_aligned__generated_faces(faces: list[Picture], half: int) -> None:
    """Thirty aligned faces are aligned, gray, with swapped channels, or a little displaced as well."""
    sample = faces[half : half + 30]
    assert check_alignment(sample).is_aligned
    assert check_alignment([face[..., ::-1] for face in sample]).means == pytest.approx(check_alignment(sample).means)
    assert check_alignment([cv2.convertScaleAbs(face, alpha=0.4, beta=20) for face in sample]).is_aligned
    assert check_alignment(map(moved(1.02, 2, (1, 1)), sample)).is_aligned


@pytest.mark.parametrize(
    "displaced",
    [
        moved(0.45),  # A photo of the head and shoulders, resized.
        moved(0.5, shift=(0, 5)),
        moved(2.2),
        moved(1, shift=(0, 18)),
        moved(1, shift=(-20, 0)),
        moved(1, turn=45),
        lambda face: face[::-1],
        lambda face: np.rot90(face).copy(),
        lambda face: np.full_like(face, 90),
        lambda face: np.random.default_rng(int(face.sum())).integers(0, 256, face.shape, np.uint8),
    ],
)
@pytest.mark.parametrize("half", [0, 30])
def test_not_aligned__displaced_faces(faces: list[Picture], displaced: Callable[[Picture], Picture], half: int) -> None:
    """The same thirty faces elsewhere in the image, turned over, and images without faces are not aligned."""
    alignment = check_alignment(map(displaced, faces[half : half + 30]))
    assert alignment.is_aligned is False
    warning = alignment.warning("the set")
    assert warning is not None
    assert "lafs align" in warning


def test_scale__of_smaller_faces(faces: list[Picture]) -> None:
    """Faces of four fifths of the size fit a smaller template better, and are not aligned."""
    alignment = check_alignment(map(moved(0.75), faces))
    assert alignment.best_scale in (0.6, 0.75)
    assert alignment.is_aligned is False
    assert check_alignment(faces).best_scale == 1


def test_few_images__give_no_verdict(faces: list[Picture]) -> None:
    """No warning from a handful of images; none at all are no error."""
    assert check_alignment(face[::-1] for face in faces[:15]).is_aligned is None
    assert check_alignment([]).warning("the set") is None
    assert check_alignment([]).describe() == "unknown: 0 of at least 16 images"


def test_correlations_of__other_sizes(faces: list[Picture]) -> None:
    """An aligned face of another size is reduced first."""
    large = cv2.resize(faces[0], (224, 224), interpolation=cv2.INTER_CUBIC)
    # Interpolation moves a correlation by a hundredth.
    np.testing.assert_allclose(correlations_of(large), correlations_of(faces[0]), atol=0.03)


def test_set__damaged_records_are_passed_over(faces: list[Picture], tmp_path: Path) -> None:
    """A set is checked without its damaged records."""
    images = [encode_jpeg(face[..., ::-1], 95) for face in faces[:30]]
    write_plain(tmp_path / "train.rec", [0.0] * 32, [b"no image", *images, b""])
    alignment = check_set(open_faces(str(tmp_path / "train.rec")))
    assert alignment.images == 30
    assert alignment.is_aligned


@pytest.mark.parametrize("is_aligned", [True, False])
def test_pack_and_inspect__warn(
    faces: list[Picture], tmp_path: Path, caplog: pytest.LogCaptureFixture, is_aligned: bool
) -> None:
    """`--resize` says that it does not align; unaligned images are noticed by pack and --inspect, aligned ones not."""
    (tmp_path / "photos").mkdir()
    for number, face in enumerate(faces[:30]):
        photo = cv2.resize(face if is_aligned else moved(0.45)(face), (250, 250), interpolation=cv2.INTER_CUBIC)
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode_jpeg(photo[..., ::-1], 95))
    with caplog.at_level(logging.INFO, "lafs_ray"):
        packed([tmp_path / "photos"], tmp_path / "set", rules=ImageRules(resize=True))
    assert "--resize scales images, it does not align faces" in caplog.text
    assert ("NOT aligned" in caplog.text) is not is_aligned
    assert ("lafs align" in caplog.text) is not is_aligned
    sheet = str(tmp_path / "sheet.png")
    lines = list(inspect_faces(str(tmp_path / "set"), sheet=sheet, check_all=False))
    (line,) = (line for line in lines if line.startswith("alignment"))
    assert ("NOT aligned" in line) is not is_aligned
    assert any("lafs align" in line for line in lines) is not is_aligned
    assert float(line.split("(")[1].split(",")[0]) == pytest.approx(ALIGNED, abs=0.45)
