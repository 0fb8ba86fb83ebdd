"""Ray Data as the source of one rank's batches: tasks read portions, actors decode and cut them.

Every training worker streams its own portions, in the order of the plan, so the order depends on no
timing and no other rank, and a restart begins at any step. The dataset of a worker is one block for
each portion all the way: 256 records a read task, about 33 MB of crops a block.

Ours: not `streaming_split`, whose dealing of blocks to ranks depends on their number and offers no
way back into the middle of an epoch (shared RAY notes, section 2.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from lafs_ray.config.sections import Job
from lafs_ray.data.plan import Portion
from lafs_ray.training.session import JobInputs
from lafs_ray.training.starvation import CPUS_A_READ, READING_CPUS
from lafs_ray.training.stream import Columns, StepBatch, deal_steps, timed_cut, timed_read

# One execution plans this many portions at most: half a million faces. Actors start anew for the
# next one, a few seconds in ten minutes or more; without a limit planning would grow with the run.
PORTIONS_PER_EXECUTION = 2048

_NO_PROGRESS_TIMEOUT_S = 300
_BYTES_PER_RECORD = 8_000


class PortionSource(Datasource):  # type: ignore[misc] # Ray ships no types
    """A datasource with one read task, hence one block, for each portion.

    Args:
        inputs: reference to the `JobInputs` in the object store, shared by all tasks of a node.
        portions: in the order wanted.
    """

    def __init__(self, inputs: ray.ObjectRef, portions: list[Portion]) -> None:
        super().__init__()
        self._inputs, self._portions = inputs, portions

    def get_name(self) -> str:
        """Name of the read stage in Ray's displays."""
        return "Portions"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the stored images, roughly."""
        return sum(_num_records(portion) for portion in self._portions) * _BYTES_PER_RECORD

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task for each portion, whatever Ray would like
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - part of Ray's interface
    ) -> list[ReadTask]:
        """One task for each portion, in order."""
        return [
            ReadTask(
                partial(_read, self._inputs, number, portion),
                BlockMetadata(
                    num_rows=_num_records(portion),
                    size_bytes=_num_records(portion) * _BYTES_PER_RECORD,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for number, portion in enumerate(self._portions)
        ]


def _num_records(portion: Portion) -> int:
    return (portion.steps[1] - portion.steps[0]) * (portion.rows[1] - portion.rows[0])


def _read(reference: ray.ObjectRef, number: int, portion: Portion) -> Iterator[pa.Table]:
    inputs: JobInputs = ray.get(reference)
    rows = timed_read(inputs.faces, inputs.plan, portion)
    # Arrow's own columns have one dimension; cached landmarks have three.
    wide = {n: ArrowTensorArray.from_numpy(rows.pop(n)) for n in list(rows) if rows[n].ndim > 1}
    yield pa.table({"portion": np.full(len(rows["key"]), number), **rows, **wide})


class CropActor:
    """A stateful worker: holds the decoder, the landmark CNN and the view settings."""

    def __init__(self, reference: ray.ObjectRef) -> None:
        inputs: JobInputs = ray.get(reference)
        self._crop = inputs.cropper()

    def __call__(self, rows: Columns) -> Columns:
        """Cut one portion; its number and what reading took travel along."""
        portion = rows.pop("portion")
        return {**timed_cut(self._crop, rows), "portion": portion}


def rank_stream(
    inputs: JobInputs, reference: ray.ObjectRef, rank: int, world: int, first: int, stop: int
) -> Iterator[StepBatch]:
    """One rank's batches of steps first…stop-1, through Ray Data.

    Args:
        inputs: the job.
        reference: the same, in the object store.
        rank: this rank.
        world: number of ranks.
        first: first global step.
        stop: past-the-last global step.
    """
    windows = inputs.plan.windows(first, stop, rank, world)
    while True:
        execution: list[list[Portion]] = []
        while sum(map(len, execution)) < PORTIONS_PER_EXECUTION:
            window = next(windows, None)
            if window is None:
                break
            execution.append(window)
        if not execution:
            return
        blocks = _blocks(inputs.config, reference, list(itertools.chain(*execution)))
        yield from deal_steps(_windows_with_blocks(execution, blocks))


def _windows_with_blocks(
    windows: list[list[Portion]], blocks: Iterator[Columns]
) -> Iterator[tuple[list[Portion], list[Columns]]]:
    expected = itertools.count()
    for window in windows:
        cut: list[Columns] = []
        for portion in window:
            block, number = dict(next(blocks)), next(expected)
            found = block.pop("portion")
            in_order = len(found) == _num_records(portion) and (found == number).all()
            assert in_order, f"Ray Data gave portions {np.unique(found)} in place of {number}"
            cut.append(block)
        yield window, cut


def _blocks(config: Job, reference: ray.ObjectRef, portions: list[Portion]) -> Iterator[Columns]:
    """The cut portions, one block each, in order."""
    ingest = config.ingest
    context = DataContext.get_current()
    configure_context(context, ingest_cpus(config))
    # Every task and actor of the dataset goes where the nodes have these labels.
    context.execution_options.label_selector = ingest.node_labels or None
    dataset = ray.data.read_datasource(
        PortionSource(reference, portions),
        override_num_blocks=len(portions),
        num_cpus=CPUS_A_READ,
    ).map_batches(
        CropActor,
        batch_size=None,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=min(ingest.actors_per_worker, len(portions))),
        num_cpus=ingest.cpus_per_actor,
        fn_constructor_args=[reference],
        udf_modifying_row_count=False,
    )
    return iter(
        dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=ingest.prefetch_batches
        )
    )


def configure_context(context: DataContext, cpus: float) -> None:
    """Settings of Ray Data that the order, the memory and the terminal rely on.

    Args:
        context: of the process that makes the dataset.
        cpus: which its tasks and actors may take.
    """
    context.execution_options.preserve_order = True
    # None keeps one block for each task; a size would slice or merge portions.
    context.target_max_block_size = None
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(cpu=cpus)


def ingest_cpus(config: Job) -> float:
    """CPUs that the ingest of one training worker takes: its croppers and one worth of reading."""
    return config.ingest.actors_per_worker * config.ingest.cpus_per_actor + READING_CPUS


def needed_cpus(config: Job) -> float:
    """CPUs without which a run, of compute.min_workers if there is one, would wait for ever."""
    probe = config.probe.cpus if config.probe.enabled else 0
    compute = config.compute
    return compute.worker_counts[0] * (compute.cpus_per_worker + ingest_cpus(config)) + probe


def as_reference(inputs: JobInputs) -> Any:
    """Put a job into the object store."""
    return ray.put(inputs)
