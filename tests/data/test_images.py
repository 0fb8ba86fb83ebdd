"""Decoding of images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.errors import DataError

GOLDEN = Path(__file__).parent.parent / "golden"
INSIGHTFACE = GOLDEN / "h3_insightface_rec"
PLAIN = GOLDEN / "h5_plain_rec" / "data.rec"


def test_decode_image__color_order() -> None:
    """`bgr` gives the channels of `rgb` swapped, as the reference does for its own files."""
    expected = json.loads((INSIGHTFACE / "meta.json").read_text())["datasets"]["lafs_finetune_web"]
    faces = open_faces(str(INSIGHTFACE))
    rows = faces.read(np.arange(faces.num_images))
    swapped = [decode_image(image, color_order="bgr") for image in rows.images]
    digests = [hashlib.sha256(p.transpose(2, 0, 1).tobytes()).hexdigest() for p in swapped]
    assert digests == expected["chw_sha256"]


def encoded(pixels: NDArray[np.uint8], ending: str = ".png") -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def test_decode_image__kinds_of_file() -> None:
    """PNG is exact, gray becomes three equal channels, depth 16 and alpha become 8-bit RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(pixels), color_order="bgr"), pixels)
    assert np.array_equal(decode_image(encoded(pixels), color_order="rgb"), pixels[..., ::-1])
    gray = decode_image(encoded(pixels[..., 0]), color_order="rgb")
    assert np.array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))
    for other in (pixels.astype(np.uint16) * 257, np.dstack([pixels, pixels[..., :1]])):
        assert np.array_equal(decode_image(encoded(other), color_order="bgr"), pixels)


@pytest.mark.parametrize(("shape", "found"), [((112, 90), "90x112"), ((112, 96), "96x112"), ((224, 224), "224x224")])
def test_decode_image__another_size(shape: tuple[int, int], found: str) -> None:
    """A face of another size is refused with width x height and a fix."""
    with pytest.raises(DataError) as error:
        decode_image(encoded(np.zeros(shape, np.uint8)), color_order="rgb")
    assert error.value.found == found
    assert error.value.expected == "a JPEG or PNG of 112x112"
    assert "align" in error.value.fix
    side = decode_image(encoded(np.zeros((64, 64), np.uint8)), color_order="rgb", size=64)
    assert side.shape == (64, 64, 3)


def test_decode_image__undecodable() -> None:
    """Empty, foreign and truncated data are refused; a truncated JPEG is not filled with gray."""
    jpeg = encoded(np.zeros((112, 112, 3), np.uint8), ".jpg")
    for data, found in [
        (b"", "0 bytes"),
        (b"GIF8 or so", "10 bytes that begin with 0x47494638 and do not decode"),
        (jpeg[:-2], f"{len(jpeg) - 2} bytes of a truncated JPEG"),
        (jpeg[:100], "100 bytes of a truncated JPEG"),
    ]:
        with pytest.raises(DataError) as error:
            decode_image(data, color_order="rgb")
        assert error.value.found == found
