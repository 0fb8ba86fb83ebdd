"""Read and write verification pairs in insightface's `.bin`: a pickle of 2P images and P labels.

A pickle may execute any code when it is loaded, and these files come from many sources. The reader therefore builds
lists, tuples, bytes, bools and ints only; the few globals that old Python and numpy wrote for such values are mapped to
constructors of this module.
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
# Allowed dtypes of an array or scalar in a file; none of them can hold an object.
_DTYPES = {"b1", "u1", "i1", "i2", "i4", "i8"}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Verification pairs; images 2i and 2i+1 are pair i.

    Args:
        images: encoded images (JPEG or PNG), 2P of them.
        same: whether a pair shows one identity, bool [P].
    """

    images: list[bytes]
    same: NDArray[np.bool_]


def _name(value: object) -> str:
    """Decode a name in the file: Python 2 wrote bytes where Python 3 has str."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _DType:
    """Substitute for numpy.dtype."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind = {"bool": "b1", "uint8": "u1"}.get(_name(kind), _name(kind).lstrip("|<"))
        if self.kind not in _DTYPES:
            raise ValueError(f"an array of dtype {self.kind}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and _name(state[1]) == ">":
            raise ValueError("big-endian numbers")

    def numbers(self, raw: object) -> NDArray[Any]:
        """Decode the numbers in bytes; strings of Python 2 may be loaded as latin-1."""
        data = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes | bytearray):
            raise TypeError(f"numbers in a {type(raw).__name__}")
        return np.frombuffer(data, np.dtype(f"<{self.kind}"))


class _Array:
    """Substitute for numpy.ndarray of one dimension."""

    # Values of an array that the file creates and never fills: neither labels nor an image.
    numbers: NDArray[Any] = np.empty(0, np.float64)
    content: bytes = b""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, _, raw = state
        self._budget.spend(raw)
        self.numbers = kind.numbers(raw)
        # Copied once per array: a list may refer to the same one a million times.
        self.content = self.numbers.tobytes()
        if shape != (len(self.numbers),):
            # Not repr in general: a tuple may hold itself many times over.
            is_plain = len(shape) <= 8 and all(type(side) is int and abs(side) < 1 << 62 for side in shape)
            raise ValueError(f"an array of shape {shape if is_plain else 'unknown'}")


def _scalar(kind: _DType, raw: object) -> Any:
    return kind.numbers(raw)[0].item()


class _Budget:
    """Bytes that a file may make of its texts: as many as it has, since each is written for one image.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = 2 * size

    def spend(self, raw: object) -> None:
        """Count one conversion of bytes or text."""
        self._left -= len(raw) if isinstance(raw, bytes | bytearray | str) else 0
        if self._left < 0:
            raise ValueError("the same bytes in more images than the file has room for")

    def array(self, *_: object) -> _Array:
        """Return an array that a pickle fills later."""
        return _Array(self)

    def from_buffer(self, raw: object, kind: _DType, shape: tuple[int, ...], _: str) -> _Array:
        """Return an array with its content."""
        array = _Array(self)
        array.__setstate__((1, shape, kind, False, raw))
        return array

    def encode(self, text: str, encoding: object) -> bytes:
        """Return the bytes that a protocol without bytes stored as text."""
        if _name(encoding) not in ("latin1", "latin-1"):
            raise ValueError(f"text in {_name(encoding)[:40]}")
        self.spend(text)
        return text.encode("latin-1")


class _Constructor:
    """A function that a pickle may call but not modify (pickle's BUILD sets attributes)."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, _: object) -> None:
        raise ValueError("attributes of a constructor")


# Globals in harmless files of old writers: Python 3 wrote bytes through _codecs.encode up to protocol 2; numpy bools
# and arrays come from scripts that kept the labels in an array.
def _constructors(budget: _Budget) -> dict[str, Callable[..., Any]]:
    return {
        "_codecs.encode": budget.encode,
        "numpy.dtype": _DType,
        "numpy.ndarray": budget.array,
        "numpy.core.multiarray._reconstruct": budget.array,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer": budget.from_buffer,
    }


_FREE_OPCODES = 1_000_000
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}


class _PairsUnpickler(pickle.Unpickler):
    """Unpickler of plain values; any global without a substitute raises before it is imported."""

    def __init__(self, data: bytes, uri: str) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._uri = uri
        self._constructors = _constructors(_Budget(len(data)))

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved the private half of numpy.core to numpy._core.
        build = self._constructors.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if build is None:
            raise DataError(
                self._uri,
                found=f"a pickle that refers to {module}.{name}",
                expected=f"{_FORMAT}, which needs no code",
                fix="do not trust this file: take it from its publisher again",
            )
        return _Constructor(build)


def read_pairs(uri: str) -> Pairs:
    """Read an insightface verification `.bin`; nothing in the file is executed.

    Raises:
        DataError: the file is missing, no such pickle, refers to anything but plain values, or its counts disagree.
    """
    data = filesystem.read_bytes(uri)
    try:
        _check_opcodes(data)
        content = _PairsUnpickler(data, uri).load()
    except DataError:
        raise
    except Exception as error:
        # A damaged pickle may raise any exception.
        found = f"no readable pickle ({type(error).__name__}: {error})"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX) from error
    if not isinstance(content, list | tuple) or len(content) != 2:
        found = f"a pickle of a {type(content).__name__}"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)
    images, same = _plain_list(uri, content[0]), _plain_list(uri, content[1])
    copies: dict[int, bytes] = {}
    return _validated(uri, [_image(uri, i, image, copies) for i, image in enumerate(images)], same)


def _check_opcodes(data: bytes) -> None:
    """Refuse pickles that allocate gigabytes from a few bytes, before anything is built.

    The memo is an array that grows to the highest index used, up to 2^32; every writer numbers its entries from 0.
    `genops` itself checks lengths against the rest of the file.
    """
    # An opcode of one byte takes up to 80 bytes of memory; an image takes a few, besides its content.
    most = _FREE_OPCODES + len(data) // 20
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > most:
            raise ValueError(f"more than {most:,} instructions")
        if opcode.name in _MEMO_OPCODES and isinstance(argument, int) and argument > number:
            raise ValueError(f"memo index {argument} in instruction {number}")


def _plain_list(uri: str, value: object) -> Sequence[Any]:
    if isinstance(value, _Array):
        numbers: list[Any] = value.numbers.tolist()
        return numbers
    if isinstance(value, list | tuple):
        return value
    found = f"a {type(value).__name__} instead of a list"
    raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)


def _image(uri: str, number: int, value: object, copies: dict[int, bytes]) -> bytes:
    if isinstance(value, _Array) and value.numbers.dtype == np.uint8:
        return value.content
    if isinstance(value, bytes | bytearray):
        # Copied once: a list may refer to the same one a million times.
        return value if isinstance(value, bytes) else _copied(value, copies)
    raise DataError(
        f"{uri}, image {number}", found=f"a {type(value).__name__}", expected="the bytes of an encoded image", fix=_FIX
    )


def _copied(value: bytearray, copies: dict[int, bytes]) -> bytes:
    if id(value) not in copies:
        copies[id(value)] = bytes(value)
    return copies[id(value)]


def _validated(uri: str, images: list[bytes], same: Sequence[Any]) -> Pairs:
    if not images or len(images) != 2 * len(same):
        found = f"{len(images)} images and {len(same)} pair labels"
        expected = "two images per pair label, and at least one pair"
        raise DataError(uri, found=found, expected=expected, fix=_FIX)
    for number, label in enumerate(same):
        if not isinstance(label, int) or label not in (0, 1):
            subject = f"{uri}, pair {number}"
            # Not repr in general: a list may contain itself, an int have a million digits.
            text = f"a {type(label).__name__}"
            if label is None or (isinstance(label, int | float) and abs(label) < 1 << 62):
                text = str(label)
            found = f"{text} as pair label"
            raise DataError(subject, found=found, expected="True or False", fix=_FIX)
    return Pairs(images, np.array(same, dtype=bool))


def write_pairs(uri: str, images: Sequence[bytes], same: Sequence[bool] | NDArray[np.bool_]) -> None:
    """Write a verification `.bin` that insightface's tools read, atomically.

    Args:
        uri: path or URI of the file.
        images: encoded images, 2P of them; 2i and 2i+1 are pair i.
        same: whether pair i shows one identity, P of them.

    Raises:
        DataError: the counts disagree, or the file cannot be written.
    """
    checked = _validated(uri, list(images), [bool(label) for label in same])
    with filesystem.atomic_write(uri) as file:
        # Protocol 4 is what insightface's own writer used and Python >= 3.4 reads.
        pickle.dump((checked.images, checked.same.tolist()), file, protocol=4)
