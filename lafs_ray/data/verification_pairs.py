"""Verification pairs in insightface's `.bin`: a pickle of 2P encoded images and P truths.

A pickle may run any code when it is loaded, and these files are passed around. The reader therefore
lets the pickle build lists, tuples, bytes, bools and ints only; the few names that old Python and
numpy wrote for such values are answered with constructors of our own.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

_FORMAT = "a pickle of (list of 2P encoded images, list of P bools)"
_FIX = "take the file from insightface's model zoo again, or write it with write_pairs"
# Kinds of number an array or scalar in a file may have; none of them can hold an object.
_NUMBER_KINDS = {"b1", "u1", "i1", "i2", "i4", "i8"}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images 2i and 2i+1 are pair i.

    Args:
        images: encoded images (JPEG or PNG), 2P of them.
        same: whether a pair shows one person, bool [P].
    """

    images: list[bytes]
    same: NDArray[np.bool_]


def _name(value: object) -> str:
    """A name from the file: Python 2 wrote bytes where Python 3 has str."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _NumberKind:
    """Stands for numpy.dtype."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind = {"bool": "b1", "uint8": "u1"}.get(_name(kind), _name(kind).lstrip("|<"))
        if self.kind not in _NUMBER_KINDS:
            raise ValueError(f"numbers of kind {self.kind}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and _name(state[1]) == ">":
            raise ValueError("big-endian numbers")

    def numbers(self, raw: object) -> NDArray[Any]:
        """The numbers in a string of bytes; Python 2's strings may have come as latin-1."""
        data = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes | bytearray):
            raise TypeError(f"numbers in a {type(raw).__name__}")
        return np.frombuffer(data, np.dtype(f"<{self.kind}"))


class _Array:
    """Stands for numpy.ndarray of one dimension."""

    # Of an array that the file names and never fills: no list of truths, and no image.
    numbers: NDArray[Any] = np.empty(0, np.float64)
    content: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, _, raw = state
        self.numbers = kind.numbers(raw)
        # Once for each array: a list may name the same one a million times.
        self.content = self.numbers.tobytes()
        if shape != (len(self.numbers),):
            raise ValueError(f"an array of shape {shape}")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _NumberKind, raw: object) -> Any:
    return kind.numbers(raw)[0].item()


def _from_buffer(raw: object, kind: _NumberKind, shape: tuple[int, ...], _: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, False, raw))
    return array


def _encode(text: str, encoding: object) -> bytes:
    if _name(encoding) not in ("latin1", "latin-1"):
        raise ValueError(f"text in {_name(encoding)}")
    return text.encode("latin-1")


class _Constructor:
    """A function that a pickle may call but not alter (pickle's BUILD sets attributes)."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, _: object) -> None:
        raise ValueError("a constructor is no value")


# What harmless files of old writers name: Python 3 wrote bytes through _codecs.encode up to
# protocol 2, and numpy bools and arrays come from scripts that kept the truths in an array.
_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "numpy.dtype": _NumberKind,
    "numpy.ndarray": _reconstruct,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
}


_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}


class _PairsUnpickler(pickle.Unpickler):
    """Builds plain values; every global that is not ours is refused before it is looked up."""

    def __init__(self, file: io.BytesIO, uri: str) -> None:
        super().__init__(file, encoding="bytes")
        self._uri = uri

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved the private half of numpy.core to numpy._core.
        build = _CONSTRUCTORS.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if build is None:
            raise DataError(
                self._uri,
                found=f"a pickle that asks for {module}.{name}",
                expected=f"{_FORMAT}, which needs no code",
                fix="do not trust this file: take it from its publisher again",
            )
        return _Constructor(build)


def read_pairs(uri: str) -> Pairs:
    """Read an insightface verification `.bin`; nothing in the file is executed.

    Raises:
        DataError: the file is missing, no such pickle, asks for anything but plain values, or its
            counts disagree.
    """
    data = filesystem.read_bytes(uri)
    try:
        _check_opcodes(data)
        content = _PairsUnpickler(io.BytesIO(data), uri).load()
    except DataError:
        raise
    except Exception as error:
        # A damaged pickle ends in whatever exception its next instruction meets.
        found = f"no readable pickle ({type(error).__name__}: {error})"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX) from error
    if not isinstance(content, list | tuple) or len(content) != 2:
        found = f"a pickle of a {type(content).__name__}"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)
    images, same = _plain_list(uri, content[0]), _plain_list(uri, content[1])
    return _checked(uri, [_image(uri, i, image) for i, image in enumerate(images)], same)


def _check_opcodes(data: bytes) -> None:
    """Refuse what takes gigabytes to build from a few bytes, before anything is built.

    The memo is an array that grows to the highest place named, up to 2^32: every writer numbers its
    places from 0. Lengths are compared with what the file has left by `genops` itself; only a
    bytearray would be allocated unseen.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _MEMO_OPCODES and isinstance(argument, int) and argument > number:
            raise ValueError(f"place {argument} of the memo, in instruction {number}")


def _plain_list(uri: str, value: object) -> Sequence[Any]:
    if isinstance(value, _Array):
        numbers: list[Any] = value.numbers.tolist()
        return numbers
    if isinstance(value, list | tuple):
        return value
    found = f"a {type(value).__name__} in the place of a list"
    raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)


def _image(uri: str, number: int, value: object) -> bytes:
    if isinstance(value, _Array) and value.numbers.dtype == np.uint8:
        return value.content
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise DataError(
        f"{uri}, image {number}",
        found=f"a {type(value).__name__}",
        expected="the bytes of an encoded image",
        fix=_FIX,
    )


def _checked(uri: str, images: list[bytes], same: Sequence[Any]) -> Pairs:
    if not images or len(images) != 2 * len(same):
        found = f"{len(images)} images and {len(same)} truths"
        expected = "two images for every truth, and at least one pair"
        raise DataError(uri, found=found, expected=expected, fix=_FIX)
    for number, truth in enumerate(same):
        if not isinstance(truth, int) or truth not in (0, 1):
            subject = f"{uri}, pair {number}"
            # Not any repr: a list may contain itself, and a number have a million digits.
            shown = f"a {type(truth).__name__}"
            if truth is None or (isinstance(truth, int | float) and abs(truth) < 1 << 62):
                shown = str(truth)
            found = f"{shown} as truth"
            raise DataError(subject, found=found, expected="True or False", fix=_FIX)
    return Pairs(images, np.array(same, dtype=bool))


def write_pairs(
    uri: str, images: Sequence[bytes], same: Sequence[bool] | NDArray[np.bool_]
) -> None:
    """Write a verification `.bin` that insightface's tools read, all or nothing.

    Args:
        uri: path or URI of the file.
        images: encoded images, 2P of them; 2i and 2i+1 are pair i.
        same: whether pair i shows one person, P of them.

    Raises:
        DataError: the counts disagree, or the file cannot be written.
    """
    checked = _checked(uri, list(images), [bool(truth) for truth in same])
    with filesystem.atomic_write(uri) as file:
        # Protocol 4 is what insightface's own writer used and Python >= 3.4 reads.
        pickle.dump((checked.images, checked.same.tolist()), file, protocol=4)
