"""Load a pickle of plain values and numpy arrays without executing anything in it.

A pickle may call any function when it is loaded. Here it gets lists, tuples, bytes, numbers and arrays only: the few
globals that Python and numpy write for such values are mapped to constructors of this module, and every other one is
refused before it is imported.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Dtypes of an array or scalar: numbers, bytes of a fixed length, raw bytes, objects.
_DTYPE = re.compile(r"[bui][1248]|f[248]|[SV][1-9]\d{0,8}|O8?")
_NAMES = {"bool": "b1", "uint8": "u1"}
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}
_BUILTINS = ("builtins", "__builtin__")
_FREE_OPCODES = 1_000_000


class ForeignGlobal(Exception):
    """A pickle refers to something that is no plain value; the argument is its name."""


class Array:
    """An array of a pickle.

    Attributes:
        values: in the order of memory: a numpy array, or a list of objects. Numbers are a row or a column.
        content: the bytes of a numpy array; empty for objects.
        shape: of the array.
    """

    # What the file creates and never fills.
    values: NDArray[Any] | list[Any] = np.empty(0, np.float64)
    content: bytes = b""
    shape: tuple[int, ...] = (0,)

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, raw = state
        self._budget.spend(raw)
        # Not repr in general: a tuple may hold itself many times over.
        if len(shape) > 8 or not all(type(side) is int and abs(side) < 1 << 62 for side in shape):
            raise ValueError("an array of an unknown shape")
        self.values = kind.values(raw)
        # Copied once per array: a list may refer to the same one a million times.
        self.content = self.values.tobytes() if isinstance(self.values, np.ndarray) else b""
        self.shape = tuple(shape)
        is_vector = sum(length != 1 for length in self.shape) <= 1
        if int(np.prod(self.shape)) != len(self.values) or not (is_vector or (self.is_rows and not is_fortran)):
            raise ValueError(f"an array of shape {self.shape}")

    @property
    def is_rows(self) -> bool:
        """Whether it holds objects, or bytes of a fixed length, which may be pairs."""
        return not isinstance(self.values, np.ndarray) or self.values.dtype.kind == "S"

    @property
    def is_bytes(self) -> bool:
        """Whether it holds bytes."""
        return isinstance(self.values, np.ndarray) and self.values.dtype in (np.uint8, np.int8)

    def items(self) -> list[Any]:
        """Return its values as Python's."""
        return self.values.tolist() if isinstance(self.values, np.ndarray) else self.values


def _name(value: object) -> str:
    """Decode a name in the file: Python 2 wrote bytes where Python 3 has str."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _DType:
    """Substitute for numpy.dtype."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind, self.order = _NAMES.get(_name(kind), _name(kind).lstrip("|<")), "<"
        if not _DTYPE.fullmatch(self.kind):
            raise ValueError(f"an array of dtype {self.kind[:40]}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and _name(state[1]) == ">":
            self.order = ">"

    def values(self, raw: object) -> NDArray[Any] | list[Any]:
        """Return the values in bytes, or of a list of objects; strings of Python 2 may be loaded as latin-1."""
        if self.kind.startswith("O"):
            if not isinstance(raw, list):
                raise TypeError(f"objects in a {type(raw).__name__}")
            return raw
        data = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes | bytearray):
            raise TypeError(f"numbers in a {type(raw).__name__}")
        return np.frombuffer(data, np.dtype(f"{self.order}{self.kind}"))


def _scalar(kind: _DType, raw: object) -> Any:
    values = kind.values(raw)
    if isinstance(values, list):
        raise TypeError("a scalar of objects")
    return values[0].item()


class _Budget:
    """Bytes that a file may make of its texts: twice as many as it has, since each is written for one image.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = 2 * size

    def spend(self, raw: object) -> None:
        """Count one conversion of bytes, text or a list."""
        self._left -= len(raw) if isinstance(raw, bytes | bytearray | str | list | tuple) else 0
        if self._left < 0:
            raise ValueError("the same bytes in more images than the file has room for")

    def array(self, *_: object) -> Array:
        """Return an array that a pickle fills later."""
        return Array(self)

    def from_buffer(self, raw: object, kind: _DType, shape: tuple[int, ...], _: str) -> Array:
        """Return an array with its content."""
        array = Array(self)
        array.__setstate__((1, shape, kind, False, raw))
        return array

    def encode(self, text: str, encoding: object) -> bytes:
        """Return the bytes that a protocol without bytes stored as text."""
        if _name(encoding) not in ("latin1", "latin-1"):
            raise ValueError(f"text in {_name(encoding)[:40]}")
        self.spend(text)
        return text.encode("latin-1")

    def as_bytes(self, value: object = b"", encoding: object = "latin-1") -> bytes:
        """Substitute for bytes and bytearray, which would allocate what a number says."""
        if isinstance(value, str):
            return self.encode(value, encoding)
        if not isinstance(value, bytes | bytearray | list):
            raise TypeError(f"bytes of a {type(value).__name__}")
        self.spend(value)
        return bytes(value)

    def python_array(self, kind: object, values: object = b"") -> bytes:
        """Substitute for array.array."""
        if _name(kind) not in ("B", "b"):
            raise ValueError(f"an array of type {_name(kind)[:40]}")
        return self.as_bytes([value % 256 for value in values] if isinstance(values, list) else values)

    def rebuilt_python_array(self, *state: object) -> bytes:
        """Substitute for array._array_reconstructor."""
        _, kind, _, values = state
        return self.python_array(kind, values)

    def as_list(self, values: object = (), *_: object) -> list[Any]:
        """Substitute for collections.deque, whose items may follow."""
        self.spend(values)
        return [*values] if isinstance(values, list | tuple) else []


class _Constructor:
    """A function that a pickle may call but not modify (pickle's BUILD sets attributes)."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, _: object) -> None:
        raise ValueError("attributes of a constructor")


def _constructors(budget: _Budget) -> dict[str, Callable[..., Any]]:
    # Python 3 writes bytes through _codecs.encode up to protocol 2, bytearrays as calls up to protocol 4.
    return {
        "_codecs.encode": budget.encode,
        **{f"{module}.{name}": budget.as_bytes for module in _BUILTINS for name in ("bytes", "bytearray")},
        "array.array": budget.python_array,
        "array._array_reconstructor": budget.rebuilt_python_array,
        "collections.deque": budget.as_list,
        "numpy.dtype": _DType,
        "numpy.ndarray": budget.array,
        "numpy.core.multiarray._reconstruct": budget.array,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer": budget.from_buffer,
    }


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of plain values; any global without a substitute raises before it is imported."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._constructors = _constructors(_Budget(len(data)))

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved the private half of numpy.core to numpy._core.
        build = self._constructors.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if build is None:
            raise ForeignGlobal(f"{module}.{name}")
        return _Constructor(build)


def load_plain(data: bytes) -> Any:
    """Return the value in a pickle: lists, tuples, dictionaries, bytes, numbers, None and `Array`.

    Raises:
        ForeignGlobal: it refers to anything else.
        Exception: of any kind, for a damaged pickle.
    """
    _check_opcodes(data)
    return _PlainUnpickler(data).load()


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
