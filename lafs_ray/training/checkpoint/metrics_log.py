"""JSON-lines logs of a run: `metrics.jsonl` and the like, continued after a restart."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveFloat, TypeAdapter

from lafs_ray.data.io import filesystem, json_text, reading

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 5


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    step: NonNegativeInt


class _Report(_Line):
    """A line of metrics.jsonl: these, and metrics that depend on the kind of run."""

    __pydantic_extra__: dict[str, FiniteFloat | None]

    epoch: NonNegativeInt
    loss: FiniteFloat
    lr: FiniteFloat
    images_per_s: PositiveFloat
    wait_share: FiniteFloat


class _Warning(_Line):
    kind: str
    text: str


class _Evaluation(_Line):
    __pydantic_extra__: dict[str, FiniteFloat | None]


_LINE: TypeAdapter[Any] = TypeAdapter(_Line)
_KINDS: dict[str, TypeAdapter[Any]] = {
    "metrics.jsonl": TypeAdapter(_Report),
    "warnings.jsonl": TypeAdapter(_Warning),
    "eval.jsonl": TypeAdapter(_Evaluation),
}


class MetricsLog:
    """`metrics.jsonl` of a run: one line for each report, no line twice.

    A local file is appended to; on an object store each `flush` writes the complete file. A failed append does not end
    the run: the next `flush` writes all lines.

    Args:
        uri: the file.
        first_step: where the run continues; lines of later steps are dropped, as they are repeated.
    """

    def __init__(self, uri: str, first_step: int) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._lines = [line for line in read_metrics(uri) if line["step"] <= first_step]
        self._is_complete = False
        self.flush()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        path = reading.local_path(self._uri)
        with self._lock:
            self._lines.append(dict(line))
            if path is None or not self._is_complete:
                return
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(as_line(line))
            except OSError:
                self._is_complete = False

    def flush(self) -> None:
        """Make sure that the lines are stored; may be called by another thread than `write`.

        Raises:
            DataError: the storage refuses them.
        """
        path = reading.local_path(self._uri)
        if path is not None and self._is_complete and os.path.exists(path):
            with filesystem.write_errors(self._uri), open(path, "rb") as file:
                os.fsync(file.fileno())
            return
        while True:
            lines = list(self._lines)
            with filesystem.atomic_write(self._uri) as file:
                file.write("".join(as_line(line) for line in lines).encode())
            with self._lock:
                # On an object store, what was added meanwhile waits for the next flush.
                self._is_complete = path is not None and len(lines) == len(self._lines)
            if path is None or self._is_complete:
                return


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """Return the lines of a log, none if it is missing; a warning names lines that are left out."""
    lines, left_out = read_lines(uri)
    for text in left_out[:_MOST_WARNINGS]:
        logger.warning("left out: %s", text)
    return lines


def read_lines(uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the lines of a log, and one text for each line that is not as `MetricsLog` writes it.

    A last line without an end was being written when its process ended: it is dropped without a text.
    """
    if not filesystem.exists(uri):
        return [], []
    name = filesystem.file_name(uri)
    kind, lines, left_out = _KINDS.get(name, _LINE), [], []
    *complete, last = filesystem.read_bytes(uri).split(b"\n")
    for number, text in enumerate([*complete, last] if last else complete, start=1):
        if not text.strip():
            continue
        try:
            line = json_text.parse_json(text)
            json_text.checked(kind, line)
        except ValueError as error:
            if number <= len(complete):
                left_out.append(f"{name}, line {number}: {error}")
        else:
            lines.append(line)
    return lines, left_out


def as_line(values: Mapping[str, Any]) -> str:
    """Encode one line; numbers that JSON does not have become null."""
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}
    return json.dumps(finite) + "\n"
