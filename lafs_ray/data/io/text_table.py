"""Read text files of typed columns with pyarrow; a row that does not parse is named."""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO

import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.errors import DataError

# What pyarrow raises for a damaged file; errors of reading are DataErrors by then.
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError)
_TYPES = {pa.string(): "text", pa.int64(): "an integer", pa.float64(): "a number"}
# pyarrow's messages, such as "In CSV column #1: Row #3: CSV conversion error to int64: …".
_COLUMNS = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", re.DOTALL)
_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): .* invalid value '(.*)'", re.DOTALL)


def read_text_table(
    uri: str, file: BinaryIO | io.RawIOBase, columns: dict[str, pa.DataType], *, delimiter: str, fix: str
) -> dict[str, NDArray[Any]]:
    """Read all rows; empty lines are skipped.

    Args:
        uri: of the file, for messages.
        file: its content, seekable.
        columns: names and types: string, int64 or float64.
        delimiter: one character between columns.
        fix: what to do about a bad row.

    Returns:
        A column for each name.

    Raises:
        DataError: the file is empty; a row has another number of columns or a value of another type (file and row,
            counted from 1).
    """

    def read(*, use_threads: bool) -> pa.Table:
        file.seek(0)
        return csv.read_csv(
            file,
            csv.ReadOptions(column_names=list(columns), use_threads=use_threads),
            csv.ParseOptions(delimiter=delimiter, quote_char=False),
            csv.ConvertOptions(column_types=columns, null_values=[]),
        )

    try:
        try:
            table = read(use_threads=True)
        except DAMAGE:
            table = read(use_threads=False)  # Only the serial reader numbers rows.
    except DAMAGE as error:
        raise _bad_row(uri, str(error), columns, fix) from error
    return {name: table[name].to_numpy() for name in columns}


def _bad_row(uri: str, message: str, columns: dict[str, pa.DataType], fix: str) -> DataError:
    expected = f"rows of {len(columns)} columns: {', '.join(columns)}"
    if message == "Empty CSV file":
        return DataError(uri, found="an empty file", expected=expected, fix=fix)
    if match := _COLUMNS.search(message):
        number, count, text = match.groups()
        found = f"{count} column{'s' * (count != '1')}: {text[:80]!r}"
    elif match := _VALUE.search(message):
        name, kind = list(columns.items())[int(match[1])]
        number, found = match[2], f"{match[3][:80]!r} as {name}, which is {_TYPES[kind]}"
    else:
        return DataError(uri, found=message, expected=expected, fix=fix)
    return DataError(f"{uri}, row {number}", found=found, expected=expected, fix=fix)
