"""One truth of metrics: averaged over steps and ranks on the device, then written as JSON lines."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lafs_ray.data import storage


class Meter:
    """Averages of a rank's metrics since the last report, without a host sync in between.

    Args:
        images_per_step: faces of the global batch.
    """

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._wait_s = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: Mapping[str, Tensor], wait_s: float) -> None:
        """Add one step: its metrics (0-d tensors) and the seconds it waited for its batch."""
        for name, value in metrics.items():
            total = value.detach().double()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._steps += 1
        self._wait_s += wait_s

    def report(self) -> dict[str, float]:
        """Means over steps and ranks, images per second and the share of time spent waiting.

        Every rank must call this at the same step, as it is a collective operation.
        """
        elapsed = time.perf_counter() - self._start
        names = sorted(self._sums)
        wait_share = torch.tensor(self._wait_s / elapsed, dtype=torch.float64)
        means = torch.stack([*(self._sums[name].cpu() / self._steps for name in names), wait_share])
        if dist.is_initialized():
            means = _mean_over_ranks(means)
        values = dict(zip([*names, "wait_share"], means.tolist(), strict=True))
        values["images_per_s"] = self._images_per_step * self._steps / elapsed
        self._reset()
        return values


def _mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over ranks; NCCL reduces tensors on the GPU alone."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = values.to(device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).cpu()


def share_lines(lines: set[str]) -> set[str]:
    """The lines of all ranks; a collective operation."""
    if not dist.is_initialized():
        return lines
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, lines)
    return set().union(*gathered)


def from_first_rank(value: int) -> int:
    """Rank 0's value on every rank; a collective operation."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return int(box[0])


class MetricsLog:
    """`metrics.jsonl` of a run: one line for each report, no line twice.

    A local file is appended to; on an object store the whole file is written at each `flush`. A
    disk that refuses a line does not end the run: the next `flush` writes all of them.

    Args:
        uri: the file.
        first_step: where the run continues; lines of later steps are dropped, as they come again.
    """

    def __init__(self, uri: str, first_step: int) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._lines = [line for line in read_metrics(uri) if line["step"] <= first_step]
        self._is_whole = False
        self.flush()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        path = storage.local_path(self._uri)
        with self._lock:
            self._lines.append(dict(line))
            if path is None or not self._is_whole:
                return
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError:
                self._is_whole = False

    def flush(self) -> None:
        """Make sure that the lines survive; another thread may call it than that which writes.

        Raises:
            DataError: the storage refuses them.
        """
        path = storage.local_path(self._uri)
        if path is not None and self._is_whole and os.path.exists(path):
            with storage.write_errors(self._uri), open(path, "rb") as file:
                os.fsync(file.fileno())
            return
        while True:
            lines = list(self._lines)
            with storage.atomic_write(self._uri) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            with self._lock:
                # On an object store, what was added meanwhile waits for the next flush.
                self._is_whole = path is not None and len(lines) == len(self._lines)
            if path is None or self._is_whole:
                return


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """The lines of a metrics file, none where it is missing; a line cut short is left out."""
    if not storage.exists(uri):
        return []
    lines: list[dict[str, Any]] = []
    for text in storage.read_bytes(uri).decode("utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
