"""Files of `torch.save`, inspected before torch loads them: their objects, their sizes and their checksums.

`torch.load` (`weights_only`) runs no code, but it allocates what a file claims, expands tensors by their strides,
inflates compressed members and ignores the archive's checksums. Here an unpickler that builds nothing but plain
containers goes first; torch loads only what is as large as the file says.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch

# An opcode takes up to some 80 bytes of memory: 160 MB. A checkpoint of the base model has 30,000.
_MOST_OPCODES = 2_000_000
# Of a NumPy scalar, for which alone the released code has text turned into bytes.
_MOST_ENCODED = 64
# Tensors may share memory, as tied weights do.
_MOST_SHARED = 4
_ZIP_MAGIC = b"PK\x03\x04"
_PROTOCOLS = 3  # Pickles before the content of a file of torch 1.5: magic number, version, byte order.

_ITEM_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool"), 1),
}
_NUMBERS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} | {"b1"}
_DTYPES = {f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool")}
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST"),
    *("EMPTY_DICT", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"),
    *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
}


@dataclass(frozen=True)
class _Storage:
    """Memory of tensors: its key in the file, and its length as the file claims it."""

    key: str
    numel: int
    item_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.numel * self.item_bytes


class _Plain:
    """Stands for an object that torch will build."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Call:
    """A function that a pickle may call but not modify (pickle's BUILD sets attributes)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, _: object) -> None:
        raise ValueError("attributes of a function")


class _Inspector(pickle.Unpickler):
    """Unpickler that builds plain containers, and notes storages and the memory of tensors."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.storages: dict[str, _Storage] = {}
        self.tensor_bytes = 0
        scalar = _Call(lambda *_: _Plain())
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "argparse.Namespace": _Plain,
            "torch._utils._rebuild_tensor_v2": _Call(self._tensor),
            "torch._utils._rebuild_tensor": _Call(self._tensor),
            "torch._utils._rebuild_parameter": _Call(lambda tensor, *_: tensor),
            "numpy.core.multiarray.scalar": scalar,
            "numpy._core.multiarray.scalar": scalar,
            "numpy.dtype": _Call(_number_kind),
            "_codecs.encode": _Call(_encoded),
            "torch.Size": _Call(lambda *_: _Plain()),
            "torch.device": _Call(lambda *_: _Plain()),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return a substitute; no module is imported."""
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        if full in _DTYPES:
            return _Plain()
        if module == "torch" and (size := _ITEM_BYTES.get(name.removesuffix("Storage"))) and name.endswith("Storage"):
            return size
        raise pickle.UnpicklingError(f"GLOBAL {full}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage: ("storage", type, key, location, numel), before torch 1.6 and a view, None."""
        kind, item_bytes, key, _, numel = pid[:5]
        if kind != "storage" or any(view is not None for view in pid[5:]) or type(item_bytes) is not int:
            raise ValueError("something else than memory of tensors")
        found = _Storage(_text(key), _count(numel), item_bytes)
        if self.storages.setdefault(found.key, found) != found:
            raise ValueError(f"storage {found.key[:40]!a} of two sizes")
        return found

    def _tensor(self, storage: _Storage, offset: Any, shape: Any, strides: Any, *_: object) -> _Plain:
        numel, last = 1, _count(offset)
        if len(shape) != len(strides):
            raise ValueError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
        for side, stride in zip(shape, strides, strict=True):
            numel *= _count(side)
            last += max(side - 1, 0) * _count(stride)
        if numel > storage.numel or (numel and last >= storage.numel):
            raise ValueError(f"a tensor of {numel:,} numbers in {storage.numel:,} numbers of memory")
        self.tensor_bytes += numel * storage.item_bytes
        return _Plain()


def load_torch(file: BinaryIO) -> Any:
    """Load a file of `torch.save` to the CPU.

    Args:
        file: opened for reading at any position.

    Raises:
        pickle.UnpicklingError: it refers to objects other than tensors, plain containers, and the argument namespace
            and NumPy scalars that the released code stores.
        Exception: it is damaged, or claims more memory than it has bytes; torch raises many kinds.
    """
    file.seek(0)
    is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    file.seek(0)
    if is_zip:
        _inspect_archive(file)
    else:
        _inspect_stream(file.read())
    file.seek(0)
    scalar = np.float64(0).__reduce__()[0]
    # NumPy 1 and 2 pickle scalars under different names.
    allowed: list[Any] = [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(kind)) for kind in sorted(_NUMBERS - {"f1"})),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, map_location="cpu", weights_only=True)


def _inspect_archive(file: BinaryIO) -> None:
    """Compare members, sizes and checksums of an archive (torch 1.6 and newer)."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two members of one name")
        total = sum(info.file_size for info in members.values())
        if total > size or any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError(f"members of {total:,} bytes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {ascii(damaged[:80])[1:-1]} does not match")
        pickled = [name for name in members if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError(f"{len(pickled)} members data.pkl")
        root = pickled[0].removesuffix("data.pkl")
        inspector = _inspect(archive.read(pickled[0]))
    for storage in inspector.storages.values():
        member = members.get(f"{root}data/{storage.key}")
        if member is None or member.file_size != storage.size_bytes:
            raise ValueError(f"no memory of {storage.size_bytes:,} bytes under {storage.key[:40]!a}")
    _require_small(inspector, size)


def _inspect_stream(data: bytes) -> None:
    """Compare the sizes in a file of torch 1.5 or older: pickles, then the numbers; there are no checksums."""
    stream = BytesIO(data)
    for _ in range(_PROTOCOLS):
        _check_opcodes(stream)
    start = stream.tell()
    _check_opcodes(stream)
    inspector = _inspect(data[start : stream.tell()])
    if sum(storage.size_bytes for storage in inspector.storages.values()) > len(data) - stream.tell():
        raise ValueError("less bytes than its tensors have")
    _check_opcodes(stream)
    _require_small(inspector, len(data))


def _require_small(inspector: _Inspector, size: int) -> None:
    if inspector.tensor_bytes > _MOST_SHARED * size:
        raise ValueError(f"tensors of {inspector.tensor_bytes:,} bytes that share memory")


def _inspect(pickled: bytes) -> _Inspector:
    _check_opcodes(BytesIO(pickled))
    inspector = _Inspector(BytesIO(pickled))
    inspector.load()
    return inspector


def _check_opcodes(stream: BytesIO) -> None:
    """Read one pickle without building anything; refuse opcodes that `torch.save` does not write."""
    opcodes: Iterable[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for number, (opcode, argument, _) in enumerate(opcodes):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name} in a pickle")
        # The memo is an array that grows to the highest index.
        if number > _MOST_OPCODES or (opcode.name.endswith("PUT") and argument > number):
            raise ValueError(f"too large a pickle: instruction {number}, argument {str(argument)[:20]}")


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"a {type(value).__name__} that is no size")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a {type(value).__name__} instead of text")
    return value


class _NumberKind:
    """A NumPy dtype of numbers; NumPy crashes on some states that it has not written."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        known = [(3, order, None, None, None, -1, -1, 0) for order in "<>|="]
        is_plain = type(state) is tuple and {type(part) for part in state} <= {int, str, type(None)}
        if not is_plain or state not in known:
            raise ValueError("a NumPy dtype that is no plain number")


def _number_kind(kind: Any, *_: object) -> _NumberKind:
    if kind not in _NUMBERS:
        raise pickle.UnpicklingError("GLOBAL numpy.dtype")
    return _NumberKind()


def _encoded(text: Any, *_: object) -> _Plain:
    if len(_text(text)) > _MOST_ENCODED:
        raise ValueError(f"{len(text)} bytes of a NumPy scalar")
    return _Plain()
