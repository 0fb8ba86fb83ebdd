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
from lafs_ray.training.stream import WORK

# What the clock decides: two equal runs differ in these figures of a report, and in no other.
TIMES = ("images_per_s", "wait_share", "read_ms", "cut_ms")


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
        self._work_s = dict.fromkeys(WORK, 0.0)
        self._start = time.perf_counter()

    def add(
        self,
        metrics: Mapping[str, Tensor],
        wait_s: float,
        work_s: Mapping[str, float],
        hold: Tensor,
    ) -> None:
        """Add one step.

        Args:
            metrics: 0-d tensors on the training device.
            wait_s: seconds that the step waited for its batch.
            work_s: seconds that others spent on its batch, see `StepBatch`.
            hold: 0-d on the device; where it is 1, the metrics do not count.
        """
        for name, value in metrics.items():
            total = torch.where(hold > 0, 0.0, value.detach().double())
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._steps += 1
        self._wait_s += wait_s
        for name in WORK:
            self._work_s[name] += work_s.get(name, 0.0)

    def report(self, num_steps: int) -> dict[str, float]:
        """Means over steps and ranks, images per second, and the times of the input.

        Every rank must call this at the same step, as it is a collective operation.

        Args:
            num_steps: steps since the last report whose metrics count.

        Returns:
            The metrics; `wait_share` of the time, waiting for batches; `images_per_s` of all ranks;
            `read_ms` and `cut_ms`, what an image took a process that reads, one that cuts.
        """
        elapsed = time.perf_counter() - self._start
        names = sorted(self._sums)
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        images = self._images_per_step / ranks * self._steps
        times = {
            "wait_share": self._wait_s / elapsed,
            "read_ms": 1000 * self._work_s["read"] / images,
            "cut_ms": 1000 * self._work_s["cut"] / images,
        }
        means = torch.tensor([0.0] * len(names) + list(times.values()), dtype=torch.float64)
        if names:
            means[: len(names)] = torch.stack([self._sums[name] for name in names]).cpu()
            means[: len(names)] /= num_steps
        if dist.is_initialized():
            means = _mean_over_ranks(means)
        values = dict(zip([*names, *times], means.tolist(), strict=True))
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
