"""From the batch of a step on the host to its micro-batches on the training device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lafs_ray.training.input_pipeline import StepBatch

TensorBatch = dict[str, Tensor]


def split(batch: StepBatch, parts: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return the micro-batches of a step, in row order."""
    rows = len(next(iter(batch.columns.values())))
    assert rows % parts == 0, f"{rows} rows in {parts} micro-batches"
    size = rows // parts
    return [
        {name: column[start : start + size] for name, column in batch.columns.items()} for start in range(0, rows, size)
    ]


def to_device(columns: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> TensorBatch:
    """Return columns as tensors on the training device; copies to a GPU are asynchronous."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in columns.items()}
    if device.type == "cpu":
        return tensors
    return {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}
