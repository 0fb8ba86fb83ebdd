"""The records of shuffle blocks as a Ray Data source: one read task, hence one block, for each.

Imports no torch: read tasks run in processes of their own, each of which would import it first.
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
from lafs_ray.training.input_pipeline import read_records, sample_indices

_BYTES_PER_RECORD = 8_000


class RecordDatasource(Datasource):  # type: ignore[misc] # Ray ships no types
    """A datasource with one read task per shuffle block: `sample_indices`, then `read_records`.

    Args:
        source: reference to a (`FaceSet`, `EpochSampler`), see `engine.object_store`.
        blocks: in the order of the stream.
    """

    def __init__(self, source: ray.ObjectRef, blocks: list[ShuffleBlock]) -> None:
        super().__init__()
        self._source, self._blocks = source, blocks

    def get_name(self) -> str:
        """Return the name after "Read" of the stage in Ray's displays."""
        return "Records"

    def estimate_inmemory_data_size(self) -> int:
        """Estimate the bytes of the stored images."""
        return sum(block.num_records for block in self._blocks) * _BYTES_PER_RECORD

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task per block, whatever Ray suggests
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - part of Ray's interface
    ) -> list[ReadTask]:
        """Return one task for each block, in order."""
        return [
            ReadTask(
                partial(_read, self._source, number, block),
                BlockMetadata(
                    num_rows=block.num_records,
                    size_bytes=block.num_records * _BYTES_PER_RECORD,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for number, block in enumerate(self._blocks)
        ]


def _read(source: ray.ObjectRef, number: int, block: ShuffleBlock) -> Iterator[pa.Table]:
    faces, sampler = ray.get(source)
    records = read_records(faces, sample_indices(sampler, block), block.epoch)
    # Arrow's own columns have one dimension; cached landmarks have three.
    wide = {
        name: ArrowTensorArray.from_numpy(records.pop(name))
        for name in list(records)
        if records[name].ndim > 1
    }
    yield pa.table({"block": np.full(block.num_records, number), **records, **wide})
