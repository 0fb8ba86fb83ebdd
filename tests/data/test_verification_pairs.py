from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tracemalloc
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.data.images import decode_image
from lafs_ray.data.verification_pairs import read_pairs, write_pairs
from lafs_ray.errors import DataError
from tests.golden_cases import load_case

GOLDEN = Path(__file__).parent.parent / "golden" / "i1_verification_bin" / "ver.bin"
IMAGES = [b"one", b"two", b"three \x00\xff", b"four"]


def write(path: Path, content: Any, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def _objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def refusal(path: Path | str) -> DataError:
    with pytest.raises(DataError) as error:
        read_pairs(str(path))
    return error.value


def test_read_pairs__insightface_file() -> None:
    """Labels and pixels equal those of insightface's load_bin for the same file."""
    case = load_case("i1_verification_bin")
    pairs = read_pairs(GOLDEN.as_uri())
    assert np.array_equal(pairs.same, case.outputs["issame"])
    pixels = [decode_image(image, color_order="rgb") for image in pairs.images]
    channels_first = np.stack(pixels).transpose(0, 3, 1, 2)
    assert np.array_equal(channels_first[:6], case.outputs["data0"])
    assert np.array_equal(channels_first.sum(axis=(2, 3), dtype=np.int64), case.outputs["sum0"])
    digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in channels_first]
    assert digests == case.outputs["sha0"].tolist()


def test_write_pairs__equals_the_original(tmp_path: Path) -> None:
    """Writing what was read gives the file of insightface's layout byte for byte."""
    pairs = read_pairs(str(GOLDEN))
    write_pairs(str(tmp_path / "out.bin"), pairs.images, pairs.same)
    assert (tmp_path / "out.bin").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("images", "same"),
    [
        (IMAGES, [True, False]),
        (tuple(IMAGES), (1, 0)),
        (IMAGES, [np.True_, np.False_]),
        (IMAGES, np.array([True, False])),
        (IMAGES, np.array([1, 0])),
        ([np.frombuffer(image, np.uint8) for image in IMAGES], [True, False]),
        ([np.frombuffer(image, np.uint8)[:, None] for image in IMAGES], np.array([[True], [False]])),
        ([np.frombuffer(image, np.uint8)[None] for image in IMAGES], np.array([[1.0, 0.0]])),
        ([bytearray(image) for image in IMAGES], [1.0, 0.0]),
        (_objects(IMAGES), _objects([True, False])),
        (_objects(IMAGES).reshape(2, 2), np.array([1.0, 0.0], ">f4")),
        (np.array(IMAGES), np.array([1, 0], ">i2")),
        ([np.void(image) for image in IMAGES], [np.float32(1), np.float64(0)]),
        ([np.bytes_(image) for image in IMAGES], bytearray([1, 0])),
        ([array("B", image) for image in IMAGES], deque([True, False])),
        ([tuple(IMAGES[:2]), IMAGES[2:]], (True, False)),
    ],
)
def test_read_pairs__all_protocols(tmp_path: Path, images: Any, same: Any, protocol: int) -> None:
    """Whatever plain container holds the bytes and the truths, in every pickle protocol: the same pairs."""
    pairs = read_pairs(write(tmp_path / "a.bin", (images, same), protocol))
    assert pairs.images == IMAGES
    assert pairs.same.tolist() == [True, False]
    assert pairs.same.dtype == np.bool_


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_read_pairs__numpy_1_names(tmp_path: Path, protocol: int) -> None:
    """Files of numpy 1 name numpy.core; they read like those of numpy 2."""
    data = pickle.dumps((IMAGES, np.array([True, False])), protocol=protocol)
    path = tmp_path / "a.bin"
    path.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert read_pairs(str(path)).same.tolist() == [True, False]


def test_read_pairs__python_2_file(tmp_path: Path) -> None:
    """Python 2 wrote images as strings (opcode U) and numpy bools with a string of bytes."""
    images = b"".join(b"U" + struct.pack("B", len(image)) + image for image in IMAGES)
    state = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    kind = b"cnumpy\ndtype\nU\x02b1K\x00K\x01\x87R" + state
    scalars = b"".join(
        b"cnumpy.core.multiarray\nscalar\n" + kind + b"U\x01" + value + b"\x86R" for value in (b"\x01", b"\x00")
    )
    (tmp_path / "a.bin").write_bytes(b"\x80\x02](" + images + b"e](" + scalars + b"e\x86.")
    pairs = read_pairs(str(tmp_path / "a.bin"))
    assert pairs.images == IMAGES
    assert pairs.same.tolist() == [True, False]


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(("function", "name"), [(os.system, "system"), (eval, "eval"), (np.load, "load")])
def test_read_pairs__executes_nothing(tmp_path: Path, function: Any, name: str, protocol: int) -> None:
    """A pickle that calls a function is refused with its name, and the call is not made."""
    mark = tmp_path / "called"
    content = (IMAGES, [Call(function, f"open({str(mark)!r}, 'w')"), True])
    error = refusal(write(tmp_path / "a.bin", content, protocol))
    assert error.found.startswith("a pickle that refers to ")
    assert error.found.endswith(f".{name}")
    assert not mark.exists()


def test_read_pairs__constructors_cannot_be_altered(tmp_path: Path) -> None:
    """Pickle's BUILD cannot set attributes of the constructors."""
    build = b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__Ns\x86b."
    (tmp_path / "a.bin").write_bytes(build)
    assert "attributes of a constructor" in refusal(tmp_path / "a.bin").found


def test_read_pairs__views_of_memory(tmp_path: Path) -> None:
    """Protocol 5 writes a memoryview as its bytes."""
    images = [pickle.PickleBuffer(memoryview(image)) for image in IMAGES]
    assert read_pairs(write(tmp_path / "a.bin", (images, [True, False]), 5)).images == IMAGES


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([None, None]), "None as pair label"),
        (np.array([1.0, 0.5]), "0.5 as pair label"),
        (np.ones((2, 2), bool), "an array of shape (2, 2)"),
        (np.array(["one", "two"]), "an array of dtype U3"),
        (np.array([1, 0], [("a", "i4"), ("b", "i4")]), "a bytes as pair label"),
        (np.array([1j, 0]), "an array of dtype c16"),
    ],
)
def test_read_pairs__arrays_of_other_kinds(tmp_path: Path, values: Any, found: str, protocol: int) -> None:
    """Arrays of texts, fractions, records or two dimensions are refused."""
    path = write(tmp_path / "a.bin", (IMAGES, values), protocol)
    assert found in refusal(path).found


@pytest.mark.parametrize("name", ["bytearray", "bytes"])
def test_read_pairs__allocates_nothing_by_a_number(tmp_path: Path, name: str) -> None:
    """A bytearray of a terabyte in a few bytes of pickle is refused before it is made."""
    (tmp_path / "a.bin").write_bytes(b"cbuiltins\n%s\n(I1000000000000\ntR." % name.encode())
    assert "bytes of a int" in refusal(tmp_path / "a.bin").found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ((IMAGES[:3], [True]), "3 images and 1 pair labels"),
        ((IMAGES, [True]), "4 images and 1 pair labels"),
        (([], []), "0 images and 0 pair labels"),
        ((IMAGES, [True, 2]), "2 as pair label"),
        ((IMAGES, [True, None]), "None as pair label"),
        ((["one", "two"], [True]), "a str"),
        ((np.arange(2), [True]), "a int"),
        (({}, [True]), "a dict instead of a list"),
        (IMAGES, "a pickle of a list"),
        ({"images": IMAGES}, "a pickle of a dict"),
    ],
)
def test_read_pairs__counts_and_kinds(tmp_path: Path, content: Any, found: str) -> None:
    """Odd counts, counts that disagree, and other values are refused with what was found."""
    assert refusal(write(tmp_path / "a.bin", content)).found == found


def test_read_pairs__damaged_file(tmp_path: Path) -> None:
    """Missing, empty, truncated and foreign files are DataErrors."""
    assert refusal(tmp_path / "none.bin").found == "no such file"
    data, path = GOLDEN.read_bytes(), tmp_path / "a.bin"
    for damaged in (b"", data[:1000], data[1:], b"\xff\xd8\xff a JPEG", b"\x80\x04."):
        path.write_bytes(damaged)
        error = refusal(path)
        assert error.subject == str(path)
        assert error.found.startswith("no readable pickle (")


def test_write_pairs__counts_that_disagree(tmp_path: Path) -> None:
    """Nothing is written when images and labels do not match."""
    with pytest.raises(DataError, match="3 images and 1 pair labels"):
        write_pairs(str(tmp_path / "a.bin"), IMAGES[:3], [True])
    assert os.listdir(tmp_path) == []


def _bomb(kind: str) -> bytes:
    """Half a megabyte that stands for gigabytes: the same bytes converted, or referred to, again and again."""
    raw = b"a" * (1 << 18)
    text = b"X" + len(raw).to_bytes(4, "little") + raw + b"q\x01"
    if kind == "encode":
        once = b"c_codecs\nencode\nq\x00" + text + b"X\x06\0\0\0latin1q\x02" + b"]q\x03("
        return b"\x80\x02" + once + b"h\x00h\x01h\x02\x86R" * 40_000 + b"e]\x86."
    if kind == "bytearray":
        return b"\x80\x05(\x96" + len(raw).to_bytes(8, "little") + raw + b"q\x010](" + b"h\x01" * 40_000 + b"e]\x86."
    if kind == "deque":
        copies = b"ccollections\ndeque\nh\x01\x85R" * 20_000
        return b"\x80\x02(](" + b"K\x01" * 100_000 + b"eq\x01](" + copies + b"e]t."
    if kind == "lists":
        return b"\x80\x02](" + b"]" * 1_500_000 + b"e]\x86."
    dtype = b"cnumpy\ndtype\nq\x04(X\x02\0\0\0u1K\x00K\x01tRq\x05"
    state = b"(K\x01" + b"J" + len(raw).to_bytes(4, "little") + b"\x85h\x05\x89h\x01tq\x06"
    start = b"cnumpy.core.multiarray\n_reconstruct\nq\x07"
    return b"\x80\x02" + text + dtype + state + start + b"](" + b"h\x07)Rh\x06b" * 40_000 + b"e]\x86."


@pytest.mark.parametrize("kind", ["encode", "array", "bytearray", "deque", "lists"])
def test_read_pairs__small_files_that_stand_for_large_ones(tmp_path: Path, kind: str) -> None:
    """Refused within the memory of the file's own size."""
    path = tmp_path / "bomb.bin"
    path.write_bytes(_bomb(kind))
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_pairs(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * path.stat().st_size + (100 << 20)
