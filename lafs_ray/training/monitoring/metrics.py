"""Training metrics, averaged over steps and ranks on the device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from lafs_ray.training.input_pipeline import WORK

# Metrics that depend on the clock: two equal runs differ in these only.
TIMES = ("images_per_s", "wait_share", "read_ms", "preprocess_ms")


class Meter:
    """Averages of a rank's metrics since the last report, without a host sync in between.

    Args:
        images_per_step: faces of the global batch.
    """

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._reset()

    def _reset(self) -> None:
        # All metrics of a step in one tensor, a few launches on a GPU instead of a few for each.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        # Which of the steps since the last report had them.
        self._had: dict[tuple[str, ...], list[int]] = {}
        self._steps = 0
        self._wait_s = 0.0
        self._work_s = dict.fromkeys(WORK, 0.0)
        self._start = time.perf_counter()

    def add(
        self, metrics: Mapping[str, Tensor], wait_s: float, work_s: Mapping[str, float], skip_update: Tensor
    ) -> None:
        """Add one step.

        Args:
            metrics: 0-d tensors on the training device; a step may have more of them than others.
            wait_s: seconds that the step waited for its batch.
            work_s: seconds that other processes spent on its batch, see `StepBatch`.
            skip_update: 0-d on the device; where it is 1, the metrics do not count.
        """
        if metrics:
            names, values = tuple(metrics), torch.stack([value.detach() for value in metrics.values()]).double()
            total = torch.where(skip_update > 0, 0.0, values)
            self._sums[names] = self._sums[names] + total if names in self._sums else total
            self._had.setdefault(names, []).append(self._steps)
        self._steps += 1
        self._wait_s += wait_s
        for name in WORK:
            self._work_s[name] += work_s.get(name, 0.0)

    def report(self, num_steps: int) -> dict[str, float]:
        """Return means over the steps that had a metric and over ranks, images per second, and the input's times.

        A collective operation: every rank must call it at the same step.

        Args:
            num_steps: steps since the last report whose metrics count: the first ones.

        Returns:
            The metrics; `wait_share`, the fraction of the time spent waiting for batches; `images_per_s` of all ranks;
            `read_ms` and `preprocess_ms`, the time per image of a process that reads and of one that preprocesses.
        """
        elapsed = time.perf_counter() - self._start
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        for group, total in self._sums.items():
            had = sum(number < num_steps for number in self._had[group])
            for name, value in zip(group, total.cpu(), strict=True):
                sums[name] = sums.get(name, torch.zeros(())) + value
                counts[name] += had
        names = sorted(name for name in sums if counts[name])
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        images = self._images_per_step / ranks * self._steps
        times = {
            "wait_share": self._wait_s / elapsed,
            "read_ms": 1000 * self._work_s["read_s"] / images,
            "preprocess_ms": 1000 * self._work_s["preprocess_s"] / images,
        }
        means = torch.tensor([0.0] * len(names) + list(times.values()), dtype=torch.float64)
        if names:
            means[: len(names)] = torch.stack([sums[name] for name in names])
            means[: len(names)] /= torch.tensor([counts[name] for name in names])
        if dist.is_initialized():
            means = _mean_over_ranks(means)
        values = dict(zip([*names, *times], means.tolist(), strict=True))
        values["images_per_s"] = self._images_per_step * self._steps / elapsed
        self._reset()
        return values


def _mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean over ranks; NCCL reduces tensors on the GPU only."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = values.to(device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).cpu()
