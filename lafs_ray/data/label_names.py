"""Labels of a list, of tar members or of a column as texts, and their numbers.

A label is what is written: 001 and 1 are two identities, whatever type a reader would infer for the column. No label
are an empty cell, a null, nan and every negative integer (clusterings write -1); among numbers also NA and its like.
Numbers with a fraction of zero, as pandas writes integers beside missing values, are those integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lafs_ray.errors import DataError

_INTEGER, _NEGATIVE = re.compile(r"\+?\d+"), re.compile(r"-\d+(\.0*)?")
_DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?")
_MISSING = frozenset(("na", "n/a", "#n/a", "nan", "null", "none", "<na>"))
# Larger floats are not exact.
_MAX_FLOAT = float(1 << 53)

BadLabel = Callable[[int | None, str], DataError]
"""Makes the error for a row (None: the whole column) from what was found there."""


def as_text(column: pa.ChunkedArray) -> pa.Array | None:
    """Return a column of texts as one array of large strings; None: it has another type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    is_view = hasattr(pa.types, "is_string_view") and pa.types.is_string_view(kind)
    if not (is_view or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    text = column.cast(pa.large_string()).combine_chunks()
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def label_names(column: pa.ChunkedArray, bad: BadLabel) -> pa.Array:
    """Return the name of each row's label, strings [n]; null: it has none.

    Raises:
        DataError: the column has another type than numbers or texts, or a label is no integer.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = as_text(column)
    if text is None:
        if pa.types.is_floating(column.type):
            column = _integers(column, bad)
        if not (pa.types.is_integer(column.type) or pa.types.is_decimal(column.type) or pa.types.is_null(column.type)):
            raise bad(None, f"labels of type {column.type} (expected integers or names)")
        text = column.cast(pa.large_string()).combine_chunks()
    encoded = text.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    names = [(name or "").strip() for name in encoded.dictionary.to_pylist()]
    present = [name for name in names if name and not _NEGATIVE.fullmatch(name)]
    numbers = [name for name in present if _INTEGER.fullmatch(name) or _DECIMAL.fullmatch(name)]
    are_numbers = bool(numbers) and all(name in numbers or name.lower() in _MISSING for name in present)
    meant = [_meant(name, are_numbers=are_numbers) for name in names]
    if "" in meant:
        index = meant.index("")
        row = pc.index(encoded.indices, index).as_py()
        raise bad(row, f"the label {names[index]!r} (expected integers or names)")
    return pa.array(meant, pa.large_string()).take(encoded.indices)


def _meant(name: str, *, are_numbers: bool) -> str | None:
    """Return the name of a label; None: no label; empty: it is a fraction."""
    if not name or _NEGATIVE.fullmatch(name):
        return None
    if not are_numbers or _INTEGER.fullmatch(name):
        return name
    if name.lower() in _MISSING:
        return None
    value = float(name)
    if value != value or abs(value) > _MAX_FLOAT or value != int(value):
        return ""
    return str(int(value)) if value >= 0 else None


def _integers(column: pa.ChunkedArray, bad: BadLabel) -> pa.ChunkedArray:
    """Return a column of floats as integers; nan becomes null."""
    values = column.cast(pa.float64()).to_numpy()
    known = np.isfinite(values)
    wrong = np.flatnonzero(known & ((values != np.floor(values)) | (np.abs(values) > _MAX_FLOAT)) | np.isinf(values))
    if len(wrong):
        raise bad(int(wrong[0]), f"the label {values[wrong[0]]:g} (expected integers or names)")
    return pa.chunked_array([pa.array(np.where(known, values, 0).astype(np.int64), mask=~known)])


def numbered(labels: pa.Array, *, by_number: bool = False) -> tuple[NDArray[np.int32], list[str]]:
    """Number the labels 0… in sorted order; return the numbers and the name of each.

    Args:
        labels: strings; a null becomes -1: no label.
        by_number: sort integers as numbers; names, and integers with leading zeros, always sort by code points.
    """
    names = [str(name) for name in pc.unique(labels).drop_null().to_pylist()]
    are_integers = by_number and all(name.isdecimal() and str(int(name)) == name for name in names)
    names.sort(key=int if are_integers else None)
    numbers = pc.index_in(labels, value_set=pa.array(names, labels.type)).fill_null(-1)
    return numbers.to_numpy(zero_copy_only=False).astype(np.int32), names
