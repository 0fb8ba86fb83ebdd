from __future__ import annotations

import cv2
import numpy as np
import pytest

from lafs_ray.data.align import POSITIONS_PX
from lafs_ray.data.images import image_format, image_size
from lafs_ray.data.packing.images import ImageRules, fit_image
from lafs_ray.errors import DataError
from tests.training.faces import NO_IMAGE, face_jpegs, pixels_of

RULES = ImageRules()


def as_png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.mark.parametrize("size", [(112, 112), (250, 130), (1, 1)])
def test_image_size__equals_the_decoded_size(size: tuple[int, int]) -> None:
    """Width and height from the header of baseline and progressive JPEGs, and of PNGs."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    progressive = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    for data in (face_jpegs(1, size=size)[0], progressive, as_png(pixels)):
        assert image_size(data) == size
        assert image_size(data[:12]) is None
    assert image_size(b"GIF89a" + bytes(40)) is None


def test_fit_image__keeps_the_bytes_of_the_right_size() -> None:
    """Neither JPEG nor PNG is re-encoded, checked or not."""
    jpeg = face_jpegs(1)[0]
    for data in (jpeg, as_png(pixels_of(jpeg))):
        assert fit_image(data, RULES, None) == (data, False)
        assert fit_image(data, ImageRules(check=True), None) == (data, False)


def test_fit_image__another_size() -> None:
    """Another size is an error unless resizing is allowed and the image is square."""
    large, wide = face_jpegs(1, size=(224, 224))[0], face_jpegs(1, size=(112, 96))[0]
    with pytest.raises(DataError) as raised:
        fit_image(large, RULES, None)
    assert (raised.value.found, raised.value.expected) == ("224x224", "a JPEG or PNG of 112x112")
    data, encoded = fit_image(large, ImageRules(resize=True), None)
    assert encoded
    expected = cv2.resize(pixels_of(large), (112, 112), interpolation=cv2.INTER_AREA)
    # JPEG at quality 95 changes a smooth image by less than two levels.
    assert np.abs(pixels_of(data).astype(int) - expected).mean() < 2
    with pytest.raises(DataError, match="112x96, not square"):
        fit_image(wide, ImageRules(resize=True), None)


@pytest.mark.parametrize(
    ("scale", "shift"), [(1 / 112, 0.0), (0.01, 50.0), (1.0, 8000.0), (1.0, -200.0), (1.0, np.nan)]
)
def test_fit_image__impossible_landmarks(scale: float, shift: float) -> None:
    """Fractions of the sides, coinciding points and points far outside are errors."""
    with pytest.raises(DataError, match="of an image of 112x112") as raised:
        fit_image(face_jpegs(1)[0], RULES, POSITIONS_PX * scale + shift)
    assert raised.value.expected.startswith("five points (x, y) in pixels of the image")


@pytest.mark.parametrize("shift", [-40.0, 0.0, 60.0])
def test_fit_image__face_at_the_edge(shift: float) -> None:
    """A face cut by the border is aligned, and black beyond it."""
    _, encoded = fit_image(face_jpegs(1)[0], RULES, POSITIONS_PX + np.array([shift, 0.0]))
    assert encoded


@pytest.mark.parametrize("data", [b"", b"text", face_jpegs(1)[0][:400]])
def test_fit_image__not_an_image(data: bytes) -> None:
    """Data that is not a complete image is an error."""
    with pytest.raises(DataError, match="image"):
        fit_image(data, RULES, None)


def test_fit_image__damage_found_only_by_decoding() -> None:
    """A JPEG with a valid header and no data passes, unless every image is checked."""
    head = face_jpegs(1)[0]
    end = head.index(b"\xff\xda")
    data = head[: head.index(b"\xff\xc4")] + b"\xff\xd9"
    assert end > len(data) - 2
    assert fit_image(data, RULES, None) == (data, False)
    with pytest.raises(DataError, match="do not decode"):
        fit_image(data, ImageRules(check=True), None)
    assert image_size(NO_IMAGE) is None


def test_fit_image__aligned() -> None:
    """A rotated face is aligned to insightface's positions, in the file's color order."""
    face = pixels_of(face_jpegs(1)[0])
    matrix = cv2.getRotationMatrix2D((60.0, 50.0), 20.0, 1.7)
    matrix[:, 2] += 70, 60
    rotated = as_png(cv2.warpAffine(face, matrix, (300, 280))[..., ::-1])
    landmarks = POSITIONS_PX @ matrix[:, :2].T + matrix[:, 2]
    data, encoded = fit_image(rotated, ImageRules(quality=100), landmarks)
    assert encoded
    assert image_size(data) == (112, 112)
    inner = np.abs(pixels_of(data).astype(int) - face)[8:-8, 8:-8]
    # Two bilinear interpolations of a smooth image and JPEG's chroma subsampling.
    assert inner.mean() < 3


@pytest.mark.parametrize("ending", [".bmp", ".webp"])
def test_fit_image__other_formats_become_jpeg(ending: str) -> None:
    """BMP and WebP of the right size are re-encoded, since readers of .rec know JPEG and PNG."""
    pixels = pixels_of(face_jpegs(1)[0])
    data, encoded = fit_image(bytes(cv2.imencode(ending, pixels)[1].tobytes()), RULES, None)
    assert encoded
    assert image_format(data) == "JPEG"
    # Two lossy encodings of a smooth image: a few levels in the mean.
    assert np.abs(pixels_of(data).astype(int) - pixels[..., ::-1]).mean() < 4
