"""Decoding of images."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image, jpeg_damage
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


def sound_jpegs() -> list[bytes]:
    """Flat, black-bordered, noisy and smooth images at all qualities, subsamplings and Huffman tables."""
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, (112, 112, 3), dtype=np.uint8)
    bordered = np.zeros((112, 112, 3), np.uint8)
    bordered[40:70, 40:70] = noise[40:70, 40:70]
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    flats = [np.full((112, 112, 3), value, np.uint8) for value in (0, 128, 255)]
    found = []
    for image in (*flats, noise, bordered, smooth):
        for quality in (10, 50, 85, 100):
            for subsampling in (0, 2):
                for options in ({}, {"optimize": True}, {"progressive": True}):
                    file = io.BytesIO()
                    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling, **options)
                    found.append(file.getvalue())
    return found


def test_jpeg_damage__none_in_sound_images() -> None:
    """No sound JPEG is taken for a damaged one, flat images with optimized codes included."""
    assert [jpeg_damage(jpeg) for jpeg in sound_jpegs()] == [""] * 144


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_decode_image__zeroed_data(share: float) -> None:
    """A JPEG whose end was overwritten with zeros, its last marker included or kept, is damaged."""
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    start = int(len(jpeg) * (1 - share))
    with pytest.raises(DataError, match="zeroed data"):
        decode_image(jpeg[:start] + bytes(len(jpeg) - start - 2) + jpeg[-2:], color_order="rgb")
    with pytest.raises(DataError, match="truncated"):
        decode_image(jpeg[:start] + bytes(len(jpeg) - start), color_order="rgb")


def test_decode_image__cut_jpeg_with_a_thumbnail() -> None:
    """The end marker of an embedded thumbnail does not hide that the image is cut."""
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    thumbnail = cv2.imencode(".jpg", noise[:32, :32])[1].tobytes()
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + segment + jpeg[2:]
    assert decode_image(whole, color_order="rgb").shape == (112, 112, 3)
    with pytest.raises(DataError, match="truncated"):
        decode_image(whole[: len(whole) // 2 + len(segment) // 2], color_order="rgb")
