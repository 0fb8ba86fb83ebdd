"""When training waits for its input: which stage is slow, and what would keep up.

A process that cuts or reads notes how long it took, and the numbers of processes are settings. So
the arithmetic is that of a queue: images a second that training could take, times the seconds that
an image occupies one process, is the number of processes that have to be busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lafs_ray.config.train import TrainConfig

# What the ingest of a training worker reserves for reading, and one read task of it. Reading is
# waiting for storage; reserving a whole CPU for each would starve the croppers.
READING_CPUS, CPUS_A_READ = 1.0, 0.25
READS_AT_ONCE = int(READING_CPUS / CPUS_A_READ)
# A stage whose processes are busy for more than this share of their time is the slow one.
_BUSY = 0.75
# Reports in a row that have to wait too long before it is said: the first covers the start.
PATIENCE = 3


def slow_stage(report: Mapping[str, float], config: TrainConfig) -> str:
    """What training waits for, and what to do about it, in words with the arithmetic.

    Args:
        report: a line of metrics.jsonl.
        config: of the run.
    """
    share = report["wait_share"]
    possible = report["images_per_s"] / max(1 - share, 0.01)
    start = (
        f"training waits for its input for {share:.0%} of the time ({report['images_per_s']:.0f} "
        f"images/s, {possible:.0f} without waiting). "
    )
    cut_s, read_s = report["preprocess_ms"] / 1000, report["read_ms"] / 1000
    if config.compute.workers == 0:
        return f"{start}{_debug_mode(possible, cut_s)}"
    each = possible / config.compute.workers
    cutting, reading = each * cut_s, each * read_s
    if max(cutting / config.ingest.actors_per_worker, reading / READS_AT_ONCE) < _BUSY:
        return f"{start}{_transfer(config, cutting, reading)}"
    if reading / READS_AT_ONCE > cutting / config.ingest.actors_per_worker:
        return f"{start}{_reading(each, read_s)}"
    return f"{start}{_cutting(config, each, cut_s)}"


def _debug_mode(possible: float, cut_s: float) -> str:
    actors = max(math.ceil(possible * cut_s), 1)
    return (
        "Slow stage: decoding and crops, which debug mode does in the training process itself: "
        f"{possible:.0f} images/s × {1000 * cut_s:.1f} ms = {possible * cut_s:.1f} CPUs. "
        f"compute.workers=1 ingest.actors_per_worker={actors} cuts beside the training."
    )


def _cutting(config: TrainConfig, each: float, cut_s: float) -> str:
    workers, ingest, per_worker = config.compute.workers, config.ingest, config.compute
    wanted = max(math.ceil(each * cut_s / _BUSY), ingest.actors_per_worker + 1)
    cpus = [
        workers * (per_worker.cpus_per_worker + actors * ingest.cpus_per_actor + READING_CPUS)
        for actors in (ingest.actors_per_worker, wanted)
    ]
    return (
        f"Slow stage: decoding and crops. An image takes a process {1000 * cut_s:.1f} ms, so "
        f"{each:.0f} images/s for each worker keep {each * cut_s:.1f} processes busy; there are "
        f"{ingest.actors_per_worker}. Set ingest.actors_per_worker={wanted}: "
        f"{workers} × ({per_worker.cpus_per_worker} + {wanted} × {ingest.cpus_per_actor:g} + "
        f"{READING_CPUS:g}) = {cpus[1]:g} CPUs in place of {cpus[0]:g}."
    )


def _reading(each: float, read_s: float) -> str:
    wanted = math.ceil(each * read_s)
    return (
        f"Slow stage: reading. An image takes a read {1000 * read_s:.1f} ms, so {each:.0f} "
        f"images/s for each worker need {wanted} reads at once ({wanted * CPUS_A_READ:g} CPUs); "
        f"there are {READS_AT_ONCE}. Fewer and longer reads help more than CPUs: pack the set "
        "(jobs/pack.py), then data.chunk_records=256."
    )


def _transfer(config: TrainConfig, cutting: float, reading: float) -> str:
    ingest = config.ingest
    return (
        f"Slow stage: the transfer to the training worker. Crops keep {cutting:.1f} of "
        f"{ingest.actors_per_worker} processes busy and reading {reading:.1f} of {READS_AT_ONCE}, "
        "so CPUs for them would not help. "
        f"Raise ingest.prefetch_batches from {ingest.prefetch_batches} to "
        f"{2 * ingest.prefetch_batches}, give the worker CPUs of its own "
        f"(compute.cpus_per_worker={config.compute.cpus_per_worker + 1}), and look at the network "
        "between crop and training nodes."
    )
