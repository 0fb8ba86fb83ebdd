"""JSON-lines logs of a run: `metrics.jsonl` and the like, continued after a restart."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from lafs_ray.data.io import filesystem, reading


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
                    file.write(json.dumps(line) + "\n")
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
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            with self._lock:
                # On an object store, what was added meanwhile waits for the next flush.
                self._is_complete = path is not None and len(lines) == len(self._lines)
            if path is None or self._is_complete:
                return


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, none if it is missing; drop a truncated last line."""
    if not filesystem.exists(uri):
        return []
    lines: list[dict[str, Any]] = []
    for text in filesystem.read_bytes(uri).decode("utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
