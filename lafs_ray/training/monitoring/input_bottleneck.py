"""Names the slow stage when training waits for its input, and the settings that would keep up.

By Little's law: images/s that training could take, times the seconds that an image occupies one process, is the number
of busy processes. Each process measures its own seconds per image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lafs_ray.config.train import CPUS_PER_READ, READING_CPUS, TrainConfig

# A stage whose processes are busy for more than this fraction of the time is the slow one.
_BUSY = 0.75
# Consecutive reports above monitoring.wait_share before the warning: the first covers the start.
WAITING_REPORTS = 3


def slow_stage(report: Mapping[str, float], config: TrainConfig) -> str:
    """Return which stage training waits for and what to change, with the arithmetic.

    Args:
        report: a line of metrics.jsonl.
        config: of the run.
    """
    wait = report["wait_share"]
    possible = report["images_per_s"] / max(1 - wait, 0.01)
    ms, read_ms = report["preprocess_ms"], report["read_ms"]
    workers, ingest = config.compute.workers, config.ingest
    rate = possible / max(workers, 1)
    busy, reads = rate * ms / 1000, rate * read_ms / 1000
    actors, cpus = ingest.actors_per_worker, config.compute.cpus_per_worker
    reads_at_once = ingest.reads_at_once
    if workers == 0:
        advice = (
            "preprocessing, which debug mode does in the training process itself: "
            f"{rate:.0f} images/s × {ms:.1f} ms = {busy:.1f} CPUs. Set compute.workers=1 "
            f"ingest.actors_per_worker={max(math.ceil(busy), 1)} to preprocess in other processes."
        )
    elif max(busy / actors, reads / reads_at_once) < _BUSY:
        advice = (
            f"the transfer to the training worker. Preprocessing keeps {busy:.1f} of {actors} "
            f"processes busy and reading {reads:.1f} of {reads_at_once}, so more CPUs for them "
            f"would not help. Raise ingest.prefetch_batches from {ingest.prefetch_batches} to "
            f"{2 * ingest.prefetch_batches}, give the worker CPUs of its own "
            f"(compute.cpus_per_worker={cpus + 1}), and check the network between the nodes."
        )
    elif reads / reads_at_once > busy / actors:
        needed = math.ceil(reads)
        advice = (
            f"reading. An image occupies a read task for {read_ms:.1f} ms, so {rate:.0f} images/s "
            f"for each worker need {needed} reads at once ({needed * CPUS_PER_READ:g} CPUs); there "
            f"are {reads_at_once}. Fewer and longer reads help more than CPUs: pack the set "
            "(`lafs pack`), then set data.chunk_records=256."
        )
    else:
        needed = max(math.ceil(busy / _BUSY), actors + 1)
        now, then = (workers * (cpus + number * ingest.cpus_per_actor + READING_CPUS) for number in (actors, needed))
        advice = (
            f"preprocessing. An image occupies a process for {ms:.1f} ms, so {rate:.0f} images/s "
            f"for each worker keep {busy:.1f} processes busy; there are {actors}. Set "
            f"ingest.actors_per_worker={needed}: {workers} × ({cpus} + {needed} × "
            f"{ingest.cpus_per_actor:g} + {READING_CPUS:g}) = {then:g} CPUs instead of {now:g}."
        )
    return (
        f"training waits for its input for {wait:.0%} of the time ({report['images_per_s']:.0f} "
        f"images/s, {possible:.0f} without waiting). Slow stage: {advice}"
    )
