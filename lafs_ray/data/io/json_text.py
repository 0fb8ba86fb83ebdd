"""JSON that anyone may have written: read within bounds of memory and depth, its types checked."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import DataError

# Values take up to 12 times their text, objects and lists up to 30 times: both are bounded, so that reading takes at
# most ten times the file and 200 MB.
_MOST_BYTES = 64 << 20
_MOST_CONTAINERS = 500_000
_MOST_CHARACTERS = 200

T = TypeVar("T")


def parse_json(text: bytes | str) -> Any:
    """Return the value in a text; NaN and infinities, which are not JSON, become None.

    Raises:
        ValueError: it is not JSON, longer than 64 MiB, nested too deeply, or has more than 500,000 objects and lists.
    """
    if len(text) > _MOST_BYTES:
        raise ValueError(f"{len(text):,} bytes, more than {_MOST_BYTES:,}")
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    containers = data.count(b"{") + data.count(b"[")
    if containers > _MOST_CONTAINERS:
        raise ValueError(f"{containers:,} objects and lists, more than {_MOST_CONTAINERS:,}")
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("values that are nested too deeply") from None


def read_json(uri: str) -> Any:
    """Read the value in a file.

    Raises:
        DataError: the file is missing.
        ValueError: as `parse_json`.
    """
    with reading.open_input(uri) as file:
        if file.size() > _MOST_BYTES:
            raise ValueError(f"{file.size():,} bytes, more than {_MOST_BYTES:,}")
        return parse_json(file.readall())


def checked(adapter: TypeAdapter[T], value: Any) -> T:
    """Return a value as the type that it must have.

    Raises:
        ValueError: it is of another type; the message names the first place, in printable characters.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] in ("model_type", "dict_type", "dataclass_type"):
            first["msg"] = "not an object"
        text = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(ascii(text[:_MOST_CHARACTERS])[1:-1]) from None


def write_json(uri: str, value: Any) -> None:
    """Write readable JSON atomically; numbers must be finite."""
    with filesystem.atomic_write(uri) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode())


def damaged(uri: str, error: Exception, fix: str) -> DataError:
    """Return the error of a file whose content is not as it was written."""
    return DataError(uri, found=str(error), expected="JSON as lafs_ray wrote it", fix=fix)
