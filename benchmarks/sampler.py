"""Mixing of identities by the order of records, and the cost of sampling it, without images.

    python -m benchmarks.sampler --records 5000000 500000000

First: different identities in a batch of 256, and images of the most frequent one, for a set
ordered by identity, a packed one, and a perfect shuffle of the same labels. Then: time and memory of seeking to the
middle of epoch 7, each in a process of its own, and of reading an index; then the time that an index takes in one set
and in mixes of several. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.pack import peak_mb
from lafs_ray.data.mix_order import Mix, quantize_shares
from lafs_ray.data.packing.sorted_runs import FeistelPermutation
from lafs_ray.data.sampler import EpochSampler, rank_batches

BATCH = 256
GLOBAL_BATCH = 1024
# The longest index that is written and read: 17 bytes per line.
MOST_LINES = 5_000_000


def packed_labels(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the labels in the order of a packed set."""
    packed = np.empty_like(labels)
    packed[FeistelPermutation(len(labels), seed).positions(0, len(labels))] = labels
    return packed


def identities(labels: NDArray[np.int64], batches: int, chunk_records: int) -> NDArray[np.int64]:
    """Different identities, and images of the most frequent one, in each batch: [batches, 2]."""
    sampler = EpochSampler(len(labels), BATCH, 0, chunk_records)
    stop = min(batches, sampler.steps_per_epoch)
    return np.array([counted(labels[index]) for _, index in rank_batches(sampler, 0, stop)])


def counted(batch: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of different labels, and the count of the most frequent one."""
    counts = np.unique(batch, return_counts=True)[1]
    return len(counts), int(counts.max())


def print_order(num_images: int, each: int, batches: int) -> None:
    """Print the table of orders."""
    ordered = np.arange(num_images) // each
    packed = packed_labels(ordered, seed=0)
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(ordered)[: num_images // BATCH * BATCH].reshape(-1, BATCH)
    perfect = np.array([counted(batch) for batch in shuffled[:batches]])
    print(f"{num_images} images, {each} of each identity; batches of {BATCH}, {len(perfect)} of them")
    print(f"{'':28}{'identities':>12}{'5 % to 95 %':>14}{'of perfect':>12}{'most of one':>13}")
    rows = [("perfect shuffle", perfect)]
    rows += [(f"ordered, chunk_records {chunk}", identities(ordered, batches, chunk)) for chunk in (1, 4, 16, 64, 256)]
    rows += [(f"packed, chunk_records {chunk}", identities(packed, batches, chunk)) for chunk in (1, 256)]
    for name, found in rows:
        mean, most = found.mean(axis=0)
        low, high = np.percentile(found[:, 0], [5, 95])
        ratio = mean / perfect[:, 0].mean()
        print(f"{name:28}{mean:12.1f}{f'{low:.0f} to {high:.0f}':>14}{ratio:12.2f}{most:13.1f}")


IMPORTS = ["import time", "from lafs_ray.data.sampler import EpochSampler, rank_batches"]
SEEK = [
    "records, batch, chunk = map(int, sys.argv[1:])",
    "sampler = EpochSampler(records, batch, 0, chunk)",
    "step = 7 * sampler.steps_per_epoch + sampler.steps_per_epoch // 2",
    "for seek in (step, step + 1000):",
    "    start = time.perf_counter()",
    "    next(rank_batches(sampler, seek, seek + 1))",
    "    print(time.perf_counter() - start)",
]


def print_sampling(records: list[int], chunks: list[int]) -> None:
    """Print the table of costs."""
    print(f"\nto the middle of epoch 7, global batch {GLOBAL_BATCH}: one batch of all ranks")
    print(f"{'records':>12}{'chunk_records':>15}{'first, s':>10}{'next, s':>10}{'peak, MB':>10}")
    for count in records:
        for chunk in chunks:
            peak, times = peak_mb(IMPORTS, SEEK, str(count), str(GLOBAL_BATCH), str(chunk))
            first, following = (float(line) for line in times.split())
            print(f"{count:12}{chunk:15}{first:10.2f}{following:10.4f}{peak:10.0f}")


# Images of each set, and shares; the last has a set that is passed through 500 times as often as the first.
MIXES = (
    ((5_000_000, 500_000), (0.7, 0.3)),
    ((5_000_000, 500_000, 50_000, 5_000), (0.4, 0.3, 0.2, 0.1)),
    ((5_000_000, 10_000), (0.5, 0.5)),
)


def print_mixes(places: int, repeats: int = 5) -> None:
    """Print the time of an index in one set and in mixes of several."""
    one = EpochSampler(5_000_000, GLOBAL_BATCH, 0, 4)
    samplers = [("one set", one)]
    for sizes, shares in MIXES:
        mix = Mix(sizes, quantize_shares(shares))
        name = " + ".join(f"{size:,}" for size in sizes)
        samplers.append((name, EpochSampler(sum(sizes), GLOBAL_BATCH, 0, 4, mix)))
    print(f"\n{places:,} places in a row, chunk_records 4: processor time, median of {repeats}")
    steps = places // GLOBAL_BATCH
    for name, sampler in samplers:
        seconds = []
        for _ in range(repeats + 1):
            # Processor time: other processes may be busy.
            start = time.process_time()
            for _ in rank_batches(sampler, 0, steps):
                pass
            seconds.append(time.process_time() - start)
        print(f"{name:46}{1e9 * np.median(seconds[1:]) / (steps * GLOBAL_BATCH):8.0f} ns per image")


READ_INDEX = [
    "start = time.perf_counter()",
    "keys, offsets = read_index(sys.argv[1])",
    "print(time.perf_counter() - start)",
]


def print_index(num_lines: int) -> None:
    """Print the cost of reading an index."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.idx"
        with path.open("w") as file:
            file.writelines(f"{key}\t{key * 7000}\n" for key in range(num_lines))
        imports = ["import time", "from lafs_ray.data.recordio import read_index"]
        peak, seconds = peak_mb(imports, READ_INDEX, str(path))
        print(
            f"\nreading an index of {num_lines} lines ({path.stat().st_size / 1e6:.0f} MB): "
            f"{float(seconds):.2f} s, peak {peak:.0f} MB; {24 * num_lines / 1e6:.0f} MB are kept"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=200_000, help="for the order: of the set")
    parser.add_argument("--each", type=int, default=40, help="images per identity")
    parser.add_argument("--batches", type=int, default=400, help="that are counted")
    parser.add_argument("--records", type=int, nargs="+", default=[5_000_000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 256])
    parser.add_argument("--places", type=int, default=1_000_000, help="that mixes are timed over")
    options = parser.parse_args()
    print(
        f"{date.today()}  Python {platform.python_version()}, numpy {np.__version__}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )
    print_order(options.images, options.each, options.batches)
    print_sampling(options.records, options.chunks)
    print_mixes(options.places)
    print_index(min(max(options.records), MOST_LINES))


if __name__ == "__main__":
    main()
