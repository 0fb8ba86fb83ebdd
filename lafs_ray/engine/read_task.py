"""The function of Ray Data's read tasks, of which each shuffle block has one.

Imports no torch: read tasks run in processes of their own, each of which would import it first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data.extensions import ArrowTensorArray

from lafs_ray.training.input_pipeline import read_records, sample_indices


def read_records_of_block(rows: dict[str, Any], source: ray.ObjectRef, blocks: ray.ObjectRef) -> pa.Table:
    """Read the records of the shuffle block that a row names: `sample_indices`, `read_records`.

    Args:
        rows: the block's number as the one row of `item`.
        source: reference to a (`FaceSet`, `EpochSampler`).
        blocks: reference to all shuffle blocks.
    """
    (number,), (faces, sampler), all_blocks = rows["item"], ray.get(source), ray.get(blocks)
    block = all_blocks[number]
    records = read_records(faces, *sample_indices(sampler, block))
    # Arrow's own columns have one dimension; cached landmarks have three.
    wide = {name: ArrowTensorArray.from_numpy(records.pop(name)) for name in list(records) if records[name].ndim > 1}
    return pa.table({"block": np.full(block.num_records, number), **records, **wide})
