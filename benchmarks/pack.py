"""Packing of a synthetic set, compared with a plain copy of the same bytes, and the order it gives.

    python -m benchmarks.pack --images 200000 --repeats 1

The set is ordered by identity, like published sets: a hundred synthetic faces, repeated under new
labels. Prints times as ratios to a sequential copy of the `.rec` (read 8 MiB, write, fsync) in the same run, peak
memory, and the number of different identities per batch: unpacked, packed, and perfectly shuffled. CPU seconds are
printed next to wall-clock seconds, which depend on other load. Temporary files take five times the size of the set.
Linux only (/proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.data.sampler import EpochSampler, rank_batches
from lafs_ray.synthetic.datasets import encode_face, sample_capture, sample_identity

BATCH = 256
NUM_FACES = 100
RANDOM_READS = 5000


@lru_cache(maxsize=1)
def rendered_faces(count: int, images_each: int) -> tuple[bytes, ...]:
    """Return synthetic faces as JPEGs, `images_each` per identity."""
    return tuple(
        encode_face(sample_identity(0, identity), sample_capture(0, identity, number))
        for number, identity in ((number, number // images_each) for number in range(count))
    )


def write_ordered(path: Path, num_images: int, images_each: int) -> None:
    """Write a set in insightface's layout, ordered by identity."""
    faces = rendered_faces(min(NUM_FACES, num_images), images_each)
    first, num_identities = num_images + 1, num_images // images_each
    with RecordWriter(str(path)) as writer:
        writer.write(0, pack(Header(2, (float(first), float(first + num_identities)), 0), b""))
        for key in range(1, first):
            label = float((key - 1) // images_each)
            writer.write(key, pack(Header(0, label, key), faces[(key - 1) % len(faces)]))
        for identity in range(num_identities):
            images = (1.0 + identity * images_each, 1.0 + (identity + 1) * images_each)
            writer.write(first + identity, pack(Header(2, images, first + identity), b""))


def drop_from_cache(folder: Path) -> None:
    """Drop the files of a folder from the page cache, so that reads come from the disk."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path) -> None:
    """Copy a file sequentially: the baseline."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 8 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of a call."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of each column."""
    clock, processor = zip(*times, strict=True)
    return statistics.median(clock), statistics.median(processor)


def peak_mb(imports: list[str], work: list[str], *arguments: str) -> tuple[float, str]:
    """Return the peak memory of a process above that after its imports, in MB, and its output.

    Args:
        imports: lines of Python with the imports.
        work: lines of Python to measure.
        arguments: `sys.argv[1:]`.
    """
    lines = [
        "import re, sys",
        "from pathlib import Path",
        # Not getrusage: there, the peak of a child starts at that of its parent.
        "def peak():",
        "    status = Path('/proc/self/status').read_text()",
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])",
        *imports,
        "before = peak()",
        *work,
        "print(peak() - before)",
    ]
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *printed, peak = done.stdout.splitlines()
    return int(peak) / 1024, "\n".join(printed)


PACK = ["from lafs_ray.data.packing.options import PackOptions", "from lafs_ray.data.packing.session import pack_faces"]


def random_read_rate(faces: FaceSet) -> float:
    """Return records per second for single reads at random positions."""
    rng = np.random.default_rng(0)
    index = rng.integers(0, faces.num_images, min(RANDOM_READS, faces.num_images))

    def read() -> None:
        for number in index:
            faces.read(np.array([number]))

    return len(index) / seconds(read)[0]


def identities_in_batches(labels: NDArray[np.int64], chunk_records: int, batches: int) -> NDArray[np.int64]:
    """Return the number of different identities in each of the first batches of an epoch."""
    sampler = EpochSampler(len(labels), min(BATCH, len(labels)), 0, chunk_records)
    stop = min(batches, sampler.steps_per_epoch)
    return np.array([len(np.unique(labels[index])) for _, index in rank_batches(sampler, 0, stop)])


def main() -> None:
    """Print times, memory and quality of the order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=20_000, help="a multiple of --each")
    parser.add_argument("--each", type=int, default=40, help="images per identity")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, default=64 << 20, help="memory limit in bytes")
    parser.add_argument("--workers", type=int, default=0, help="also on Ray with this many workers")
    parser.add_argument("--folder", help="for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options)


def measure(root: Path, options: argparse.Namespace) -> None:
    """Write the set, pack it and print."""
    (root / "source").mkdir()
    source = root / "source" / "train.rec"
    write_ordered(source, options.images, options.each)
    size = source.stat().st_size
    print(
        f"{date.today()}  Python {platform.python_version()}, numpy {np.__version__}, pyarrow "
        f"{pa.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"{options.images} images, {size / 1e6:.0f} MB, memory limit {options.memory >> 20} MiB, "
        f"median of {options.repeats}"
    )
    copies, packings = [], []
    for repeat in range(options.repeats):
        # Alternating, so that other load slows both.
        drop_from_cache(root)
        copies.append(seconds(lambda: copy(source, root / "copy.rec")))
        (root / "copy.rec").unlink()
        drop_from_cache(root)
        pack_options = PackOptions((str(source),), str(root / f"set{repeat}"), 8, memory_bytes=options.memory)
        packings.append(seconds(lambda each=pack_options: pack_faces(each)))
        if repeat:
            shutil.rmtree(root / f"set{repeat}")
    (plain, plain_cpu), (ours, ours_cpu) = medians(copies), medians(packings)
    print(f"{'sequential copy':28}{plain:8.2f} s {size / plain / 1e6:8.0f} MB/s {plain_cpu:8.2f} CPU s")
    print(
        f"{'packed, one process':28}{ours:8.2f} s {size / ours / 1e6:8.0f} MB/s "
        f"{ours_cpu:8.2f} CPU s: {options.images / ours_cpu:.0f} images/s per core"
    )
    print(f"packing takes {ours / plain:.1f} × a sequential copy")
    if options.workers:
        print_on_ray(root, source, options, plain)
    work = ["options = PackOptions((sys.argv[1],), sys.argv[2], memory_bytes=int(sys.argv[3]))", "pack_faces(options)"]
    peak, _ = peak_mb(PACK, work, str(source), str(root / "measured"), str(options.memory))
    print(f"peak memory above the program itself: {peak:.0f} MB, of the set {size / 1e6:.0f} MB")
    drop_from_cache(root)
    faces = open_faces(str(source))
    rate = random_read_rate(faces)
    print(
        f"one pass with random reads: {rate:.0f} records/s, so {options.images / rate:.1f} s, "
        f"{options.images / rate / ours:.1f} × the packing"
    )
    print_order(faces.labels(), open_faces(str(root / "set0")).labels(), options.images)


def print_on_ray(root: Path, source: Path, options: argparse.Namespace, plain: float) -> None:
    """Pack on Ray, and compare the files."""
    import ray

    from lafs_ray.engine.ray_session import join_cluster
    from lafs_ray.engine.ray_tasks import apply_on_ray

    join_cluster(options.workers, "--workers")
    pack_options = PackOptions(
        (str(source),), str(root / "ray"), 8, memory_bytes=options.memory * options.workers, workers=options.workers
    )
    took, _ = seconds(lambda: pack_faces(pack_options, apply_on_ray(options.workers)))
    ray.shutdown()
    names = sorted(path.name for path in (root / "set0").iterdir())
    are_equal = all((root / "set0" / n).read_bytes() == (root / "ray" / n).read_bytes() for n in names)
    what = f"packed, {options.workers} Ray workers"
    print(f"{what:28}{took:8.2f} s: {took / plain:.1f} × a sequential copy")
    print(f"files of both {'equal' if are_equal else 'DIFFERENT'}")


def print_order(before: NDArray[np.int64], after: NDArray[np.int64], num_images: int) -> None:
    """Print the number of different identities in batches of 256."""
    batches = max(min(200, num_images // BATCH), 1)
    print(f"different identities in a batch of {BATCH}, over {batches} batches:")
    for name, labels, chunk in (
        ("unpacked, chunk_records 256", before, 256),
        ("unpacked, chunk_records 1", before, 1),
        ("packed, chunk_records 256", after, 256),
    ):
        found = identities_in_batches(labels, chunk, batches)
        low, middle, high = (f"{value:.0f}" for value in np.percentile(found, [5, 50, 95]))
        spread = f"5 % {low}, 50 % {middle}, 95 % {high}"
        print(f"{name:28}  mean {found.mean():6.1f}   {spread}")


if __name__ == "__main__":
    main()
