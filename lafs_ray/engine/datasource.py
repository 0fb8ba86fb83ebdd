"""Portions of an epoch as a datasource of Ray Data: one read task, hence one block, for each.

Without torch: read tasks run in processes of their own, each of which would import it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from lafs_ray.data.sampler import ShuffleBlock
from lafs_ray.training.input_pipeline import timed_read

_BYTES_PER_RECORD = 8_000


class ShuffleBlockDatasource(Datasource):  # type: ignore[misc] # Ray ships no types
    """A datasource with one read task, hence one block, for each portion.

    Args:
        reading: reference to a (`FaceSet`, `EpochSampler`), see `engine.shared`.
        portions: in the order wanted.
    """

    def __init__(self, reading: ray.ObjectRef, portions: list[ShuffleBlock]) -> None:
        super().__init__()
        self._reading, self._portions = reading, portions

    def get_name(self) -> str:
        """Name of the read stage in Ray's displays."""
        return "Portions"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the stored images, roughly."""
        return sum(num_records(portion) for portion in self._portions) * _BYTES_PER_RECORD

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task for each portion, whatever Ray would like
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - part of Ray's interface
    ) -> list[ReadTask]:
        """One task for each portion, in order."""
        return [
            ReadTask(
                partial(_read, self._reading, number, portion),
                BlockMetadata(
                    num_rows=num_records(portion),
                    size_bytes=num_records(portion) * _BYTES_PER_RECORD,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for number, portion in enumerate(self._portions)
        ]


def num_records(portion: ShuffleBlock) -> int:
    """Records of a portion, one of each of its rows and steps."""
    return (portion.steps[1] - portion.steps[0]) * (portion.rows[1] - portion.rows[0])


def _read(reading: ray.ObjectRef, number: int, portion: ShuffleBlock) -> Iterator[pa.Table]:
    faces, plan = ray.get(reading)
    rows = timed_read(faces, plan, portion)
    # Arrow's own columns have one dimension; cached landmarks have three.
    wide = {n: ArrowTensorArray.from_numpy(rows.pop(n)) for n in list(rows) if rows[n].ndim > 1}
    yield pa.table({"portion": np.full(len(rows["key"]), number), **rows, **wide})
