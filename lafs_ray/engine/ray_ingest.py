"""Ray Data as the source of one rank's batches: tasks read records, actors decode and transform.

The stages are those of `lafs_ray.training.input_pipeline`. Every training worker streams its own shuffle blocks in the
sampler's order, so the order depends on no timing and no other rank, and a restart begins at any step. A block stays
one block in every stage: 256 records per read task, about 33 MB of crops.

Ours: not `streaming_split`, which assigns blocks to ranks by their number and cannot resume in the
middle of an epoch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from lafs_ray.config.train import CPUS_PER_READ, TrainConfig
from lafs_ray.data.sampler import ShuffleBlock
from lafs_ray.engine.dataset_share import reserve_cpus
from lafs_ray.engine.ray_session import configure_context
from lafs_ray.engine.read_task import read_records_of_block
from lafs_ray.engine.started import Started
from lafs_ray.training.input_pipeline import Columns, StepBatch, collate, rows_of_step
from lafs_ray.training.prepare import RunInputs

# Seconds before the end of an execution of Ray Data at which the next one is started: planning it, and starting its
# actors, take some. Far below the timeout of an execution whose batches are not taken.
_AHEAD_S = 60.0

# What read tasks need, without the rest, whose classes import torch.
_SOURCE = ("faces", "sampler")


@dataclass(frozen=True)
class Shared:
    """References to the inputs of a run in the object store, of which each node holds one copy.

    Args:
        source: to the set and the order of its records, (`FaceSet`, `EpochSampler`).
        rest: to the other fields of `RunInputs` by name.
    """

    source: ray.ObjectRef
    rest: ray.ObjectRef

    def inputs(self) -> RunInputs:
        """Return the inputs; their arrays are those of the object store."""
        source, rest = ray.get([self.source, self.rest])
        return RunInputs(**dict(zip(_SOURCE, source, strict=True)), **rest)


def share(inputs: RunInputs) -> Shared:
    """Put the inputs of a run into the object store."""
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return Shared(ray.put(tuple(values.pop(name) for name in _SOURCE)), ray.put(values))


class DecodeAndTransform:
    """The actors: each owns a `Preprocessor`, hence a landmark CNN."""

    def __init__(self, shared: Shared) -> None:
        self._preprocess = shared.inputs().preprocessor()

    def __call__(self, records: Columns) -> Columns:
        """Decode and transform the records of one block; its number is passed on."""
        return {**self._preprocess(records), "block": records["block"]}


def rank_stream(inputs: RunInputs, shared: Shared, rank: int, world: int, first: int, stop: int) -> Iterator[StepBatch]:
    """Yield one rank's batches of steps first…stop-1, computed by Ray Data.

    Args:
        inputs: of the run.
        shared: the same, in the object store.
        rank: this rank.
        world: number of ranks.
        first: first global step.
        stop: past-the-last global step.
    """
    remaining = inputs.sampler.blocks(first, stop, rank, world)
    num_groups = math.ceil(inputs.config.ingest.blocks_per_execution / len(inputs.sampler.row_blocks(rank, world)))
    executions = iter(lambda: list(itertools.islice(remaining, num_groups)), [])

    def start(groups: list[list[ShuffleBlock]]) -> Generator[Columns, None, None]:
        return _execute(inputs.config, shared, list(itertools.chain(*groups)))

    current, ahead = next(executions, None), None
    try:
        while current is not None:
            columns, ahead = start(current) if ahead is None else ahead.take(), None
            following, time_left = next(executions, None), _TimeLeft(len(current))
            for blocks in current:
                processed = [next(columns) for _ in blocks]
                is_late = time_left.seconds() <= _AHEAD_S
                if following is not None and ahead is None and is_late and has_room(inputs.config, world):
                    ahead = Started(start(following))
                for step in range(*blocks[0].steps):
                    parts = [rows_of_step(*one, step) for one in zip(blocks, processed, strict=True)]
                    yield collate(step, blocks, parts, inputs.sampler)
            current = following
    finally:
        if ahead is not None:
            ahead.close()


def has_room(config: TrainConfig, world: int) -> bool:
    """Return whether as many CPUs are free as the next executions of all ranks need beside these.

    Otherwise actors of the next one would take the CPU that this one reads with, and both would wait.
    """
    return bool(ray.available_resources().get("CPU", 0.0) >= config.ingest.cpus * world)


class _TimeLeft:
    """Estimates when the groups of an execution will have been taken.

    Args:
        num_groups: of the execution.
    """

    def __init__(self, num_groups: int) -> None:
        self._left = num_groups + 1
        self._taken = -1
        self._since = 0.0

    def seconds(self) -> float:
        """Return the seconds from now to the last group; called when a group has come, infinite for the first."""
        self._left -= 1
        self._taken += 1
        if self._taken == 0:
            self._since = time.monotonic()
            return math.inf
        return self._left * (time.monotonic() - self._since) / self._taken


def _execute(config: TrainConfig, shared: Shared, blocks: list[ShuffleBlock]) -> Generator[Columns, None, None]:
    """Yield the output of `Preprocessor` for each block, in order."""
    ingest = config.ingest
    context = DataContext.get_current()
    configure_context(context, ingest.cpus)
    reserve_cpus(context)
    # Every task and actor of the dataset goes where the nodes have these labels.
    context.execution_options.label_selector = ingest.node_labels or None
    dataset = (
        ray.data.from_items([*range(len(blocks))], override_num_blocks=len(blocks))
        .map_batches(
            read_records_of_block,
            batch_size=None,
            compute=TaskPoolStrategy(size=ingest.reads_at_once),
            num_cpus=CPUS_PER_READ,
            fn_kwargs={"source": shared.source, "blocks": ray.put(blocks)},
        )
        .map_batches(
            DecodeAndTransform,
            batch_size=None,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=min(ingest.actors_per_worker, len(blocks))),
            num_cpus=ingest.cpus_per_actor,
            fn_constructor_args=[shared],
            udf_modifying_row_count=False,
        )
    )
    processed = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=ingest.prefetch_batches)
    for number, (block, columns) in enumerate(zip(blocks, processed, strict=True)):
        found = columns["block"]
        in_order = len(found) == block.num_records and (found == number).all()
        assert in_order, f"Ray Data returned blocks {np.unique(found)} in place of {number}"
        yield {name: column for name, column in columns.items() if name != "block"}
