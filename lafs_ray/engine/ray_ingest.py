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

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from lafs_ray.config.train import TrainConfig
from lafs_ray.data.sampler import ShuffleBlock
from lafs_ray.engine.datasource import ShuffleBlockDatasource, num_records
from lafs_ray.engine.object_store import Shared
from lafs_ray.engine.ray_session import configure_context
from lafs_ray.engine.resources import ingest_cpus
from lafs_ray.training.input_pipeline import Columns, StepBatch, collate_steps, timed_preprocess
from lafs_ray.training.monitoring.input_bottleneck import CPUS_A_READ
from lafs_ray.training.prepare import RunInputs

# One execution plans this many portions at most: half a million faces. Actors start anew for the
# next one, a few seconds in ten minutes or more; without a limit planning would grow with the run.
BLOCKS_PER_EXECUTION = 2048


class PreprocessActor:
    """A stateful worker: holds the decoder, the landmark CNN and the view settings."""

    def __init__(self, shared: Shared) -> None:
        self._crop = shared.inputs().cropper()

    def __call__(self, rows: Columns) -> Columns:
        """Cut one portion; its number and what reading took travel along."""
        portion = rows.pop("portion")
        return {**timed_preprocess(self._crop, rows), "portion": portion}


def rank_stream(
    inputs: RunInputs, shared: Shared, rank: int, world: int, first: int, stop: int
) -> Iterator[StepBatch]:
    """One rank's batches of steps first…stop-1, through Ray Data.

    Args:
        inputs: the job.
        shared: the same, in the object store.
        rank: this rank.
        world: number of ranks.
        first: first global step.
        stop: past-the-last global step.
    """
    windows = inputs.plan.windows(first, stop, rank, world)
    while True:
        execution: list[list[ShuffleBlock]] = []
        while sum(map(len, execution)) < BLOCKS_PER_EXECUTION:
            window = next(windows, None)
            if window is None:
                break
            execution.append(window)
        if not execution:
            return
        blocks = _blocks(inputs.config, shared, list(itertools.chain(*execution)))
        yield from collate_steps(_windows_with_blocks(execution, blocks))


def _windows_with_blocks(
    windows: list[list[ShuffleBlock]], blocks: Iterator[Columns]
) -> Iterator[tuple[list[ShuffleBlock], list[Columns]]]:
    expected = itertools.count()
    for window in windows:
        cut: list[Columns] = []
        for portion in window:
            block, number = dict(next(blocks)), next(expected)
            found = block.pop("portion")
            in_order = len(found) == num_records(portion) and (found == number).all()
            assert in_order, f"Ray Data gave portions {np.unique(found)} in place of {number}"
            cut.append(block)
        yield window, cut


def _blocks(config: TrainConfig, shared: Shared, portions: list[ShuffleBlock]) -> Iterator[Columns]:
    """The cut portions, one block each, in order."""
    ingest = config.ingest
    context = DataContext.get_current()
    configure_context(context, ingest_cpus(config))
    # Every task and actor of the dataset goes where the nodes have these labels.
    context.execution_options.label_selector = ingest.node_labels or None
    dataset = ray.data.read_datasource(
        ShuffleBlockDatasource(shared.reading, portions),
        override_num_blocks=len(portions),
        num_cpus=CPUS_A_READ,
    ).map_batches(
        PreprocessActor,
        batch_size=None,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=min(ingest.actors_per_worker, len(portions))),
        num_cpus=ingest.cpus_per_actor,
        fn_constructor_args=[shared],
        udf_modifying_row_count=False,
    )
    return iter(
        dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=ingest.prefetch_batches
        )
    )
