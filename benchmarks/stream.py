"""Stream a generated set: throughput, memory, and what going to any batch costs.

    python -m benchmarks.stream --images 200000 --actors 2

A hundred generated faces, repeated under new labels, make a `.rec` ordered by identity; it is packed as by
`jobs/pack.py`. Throughput is reported relative to a plain sequential read of the same file in the same run, the page
cache dropped before each. Memory is reported relative to the size of the data. With `--actors`, packing and streaming
run through Ray as well, the stream with decoding only (benchmarks/views.py measures transforms). Linux only (/proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.pack import PACK, drop_from_cache, peak_mb, seconds, write_ordered
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.data.sampler import BLOCK_STEPS, EpochSampler, _chunk_order
from lafs_ray.training.input_pipeline import Columns, Preprocessor, local_stream, read_records, sample_indices
from lafs_ray.training.prepare import RunInputs
from lafs_ray.training.run_length import Length
from lafs_ray.training.tasks.init_weights import InitWeights

BATCH = 256
IMAGES_PER_IDENTITY = 40
SHARDS = 8
READ_BYTES = 8 << 20
PACK_BYTES = 64 << 20
STORE_BYTES = 512 << 20


def identity(faces: Columns) -> Columns:
    """A transform that changes nothing."""
    return dict(faces)


class DecodingOnly(RunInputs):
    """Run whose preprocessing only decodes."""

    def preprocessor(self) -> Preprocessor:
        """See the class."""
        return Preprocessor(self.faces, "rgb", 0, identity)


def read_sequentially(path: Path) -> None:
    """Read the file once, 8 MiB at a time: the baseline."""
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_in_order(faces: FaceSet, chunk_records: int, most: int) -> int:
    """Read about `most` records in the order of training, in one thread; return their number."""
    sampler, count = EpochSampler(faces.num_images, BATCH, 0, chunk_records), 0
    for blocks in sampler.blocks(0, sampler.steps_per_epoch):
        for block in blocks:
            count += len(read_records(faces, *sample_indices(sampler, block))["key"])
        if count >= most:
            break
    return count


def stream_locally(faces: FaceSet, chunk_records: int) -> int:
    """Read and decode an epoch with debug mode's stream; return the number of records."""
    sampler = EpochSampler(faces.num_images, BATCH, 0, chunk_records)
    preprocess = Preprocessor(faces, "rgb", 0, identity)
    batches = local_stream(faces, sampler, preprocess, 0, sampler.steps_per_epoch)
    return sum(len(batch.columns["key"]) for batch in batches)


def stream_through_ray(faces: FaceSet, path: str, actors: int, most: int) -> int:
    """Stream up to `most` records of one rank through Ray Data; return their number."""
    from lafs_ray.engine.ray_ingest import rank_stream, share

    config = PretrainConfig.model_validate(
        {
            "run": {"name": "stream"},
            "data": {"path": path, "chunk_records": 256},
            "landmarks": {"source": "grid"},
            "batch_size": BATCH,
            "ingest": {"actors_per_worker": actors},
        }
    )
    sampler = EpochSampler(faces.num_images, BATCH, 0, 256)
    steps = min(max(most // BATCH, 1), sampler.steps_per_epoch)
    length = Length(steps, steps, steps)
    inputs = DecodingOnly(config, faces, sampler, length, None, None, InitWeights())
    batches = rank_stream(inputs, share(inputs), 0, 1, 0, steps)
    return sum(len(batch.columns["key"]) for batch in batches)


class MemoryMonitor(threading.Thread):
    """Peak memory of this process and of Ray's processes, sampled ten times a second.

    Anonymous memory only: the shared object store has a fixed size of its own.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = self.worker = self.workers = 0
        self.before = _status(os.getpid(), "RssAnon")
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._done.wait(0.1):
            self.driver = max(self.driver, _status(os.getpid(), "RssAnon") - self.before)
            names = _descendants()
            sizes = [_status(pid, "RssAnon") for pid, n in names.items() if n.startswith("ray::")]
            self.worker = max(self.worker, *sizes, 0, 0)
            self.workers = max(self.workers, sum(sizes))

    def stop(self) -> str:
        """Stop; return the peaks in MB."""
        self._done.set()
        self.join()
        return (
            f"driver + {self.driver / 1024:.0f} MB, largest worker {self.worker / 1024:.0f} MB, "
            f"all workers {self.workers / 1024:.0f} MB, besides the object store"
        )


def _status(pid: int, field: str) -> int:
    """Read a number in /proc/<pid>/status, sizes in KiB; 0 if the process has ended."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) if found else 0


def _descendants() -> dict[int, str]:
    """Return process ids and titles of all descendants of this process."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {pid: _status(pid, "PPid") for pid in pids}
    found, new = set[int](), {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found |= new
    titles = {}
    for pid in found:
        with suppress(OSError):
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return titles


def ray_session(actors: int) -> Any:
    """Start Ray on this machine, with a small object store; a context that ends with it."""
    import ray

    return ray.init(
        address="local",
        num_cpus=actors + 2,
        object_store_memory=STORE_BYTES,
        logging_level="error",
        log_to_driver=False,
    )


def watched(work: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of some work on Ray, and the peak memory meanwhile."""
    monitor = MemoryMonitor()
    monitor.start()
    return work(), monitor.stop()


class Rates:
    """Table of throughput relative to the sequential read."""

    def __init__(self, source: Path, num_records: int) -> None:
        self._root, self._size = source.parent, source.stat().st_size
        self._record_bytes = self._size / num_records
        drop_from_cache(self._root)
        took, _ = seconds(lambda: read_sequentially(source))
        self._baseline = self._size / took
        print(f"{'':40}{'records/s':>10}{'MB/s':>8}{'of sequential':>15}{'records':>10}")
        self.row("plain sequential read", num_records, took)

    def add(self, name: str, root: Path, work: Callable[[], int]) -> None:
        """Time a function that reads records and returns their number."""
        drop_from_cache(root)
        start = time.perf_counter()
        count = work()
        self.row(name, count, time.perf_counter() - start)

    def row(self, name: str, count: int, took: float) -> None:
        """Print one line."""
        rate = count * self._record_bytes / took
        ratio = rate / self._baseline
        print(f"{name:40}{count / took:10.0f}{rate / 1e6:8.1f}{ratio:15.3f}{count:10}")


def bytes_read() -> int:
    """Return the bytes this process has read by system calls."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


def print_resume(name: str, folder: Path, faces: FaceSet, chunk_records: int) -> None:
    """Print time and bytes to the first batch at several steps."""
    sampler = EpochSampler(faces.num_images, BATCH, 0, chunk_records)
    steps = sampler.steps_per_epoch
    # The first step of a shuffle block waits longest; the middle is rounded to one.
    middle = steps // 2 // BLOCK_STEPS * BLOCK_STEPS
    steps_measured = {
        "epoch 0, first batch": (0, 0),
        "epoch 0, middle": (0, middle),
        "epoch 0, last batch": (0, steps - 1),
        "epoch 7, middle": (7, middle),
    }
    for place, (epoch, number) in steps_measured.items():
        step = epoch * steps + number
        # To the end of its block: reading ahead would add the next one.
        stop = epoch * steps + min((number // BLOCK_STEPS + 1) * BLOCK_STEPS, steps)
        drop_from_cache(folder)
        _chunk_order.cache_clear()
        preprocess = Preprocessor(faces, "rgb", 0, identity)
        before, start = bytes_read(), time.perf_counter()
        batches = local_stream(faces, sampler, preprocess, step, stop)
        assert next(batches).step == step
        took, read = time.perf_counter() - start, bytes_read() - before
        batches.close()
        share = read / faces.sizes.sum()
        print(f"{f'{name}, {place}':52}{took:8.3f} s{read / 1e6:8.2f} MB{share:10.2%} of the set")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=200_000, help="a multiple of 40")
    parser.add_argument("--limit", type=int, default=20_480, help="records read one by one")
    parser.add_argument("--actors", type=int, default=0, help="on Ray; 0: without Ray")
    parser.add_argument("--ray-records", type=int, default=0, help="through Ray; 0: an epoch")
    parser.add_argument("--folder", help="where temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options)


def measure(root: Path, options: argparse.Namespace) -> None:
    """Create the set, pack it and measure."""
    source = root / "source" / "train.rec"
    packed = root / "packed"
    source.parent.mkdir()
    write_ordered(source, options.images, IMAGES_PER_IDENTITY)
    size = source.stat().st_size
    print(
        f"{date.today()}  Python {platform.python_version()}, numpy {np.__version__}, pyarrow "
        f"{pa.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"{options.images} images, {size / 1e6:.0f} MB, page cache dropped before each"
    )
    print_packing(source, packed, options.actors, size)
    took, _ = seconds(lambda: open_faces(str(source)))
    print(f"opening the ordered set: {took:.2f} s, {options.images / took:.0f} records/s")
    ordered, shuffled = open_faces(str(source)), open_faces(str(packed))
    print("time to the first batch (blocks of 2048 records is read, the batch decoded)")
    print_resume("ordered, chunk_records 4", root, ordered, 4)
    print_resume("packed, chunk_records 256", root, shuffled, 256)
    print()
    rates = Rates(source, options.images)
    for chunk in (1, 4, 16):
        name = f"ordered, chunk_records {chunk}, bytes"
        rates.add(name, root, lambda c=chunk: read_in_order(ordered, c, options.limit))
    rates.add("packed, chunk_records 256, bytes", root, lambda: read_in_order(shuffled, 256, options.images))
    drop_from_cache(root)
    print_locally(rates, packed, size)
    if options.actors:
        print_ray(rates, shuffled, packed, options)


def print_packing(source: Path, packed: Path, actors: int, size: int) -> None:
    """Pack, and print peak memory."""
    paths, memory = (str(source), str(packed)), PACK_BYTES * max(actors, 1)
    if not actors:
        work = [
            f"options = PackOptions((sys.argv[1],), sys.argv[2], {SHARDS}, memory_bytes={memory})",
            "pack_faces(options)",
        ]
        peak, _ = peak_mb(PACK, work, *paths)
        print(f"packing, one process: + {peak:.0f} MB, {peak * 2**20 / size:.2f} of the data")
        return
    from lafs_ray.engine.ray_tasks import apply_on_ray

    named = PackOptions(paths[:1], paths[1], SHARDS, memory_bytes=memory, workers=actors)
    with ray_session(actors):
        _, peaks = watched(lambda: pack_faces(named, apply_on_ray(actors)))
    print(f"packing, {actors} Ray workers with {memory >> 20} MiB together: {peaks}")


def print_ray(rates: Rates, faces: FaceSet, packed: Path, options: argparse.Namespace) -> None:
    """Stream through Ray, and print peak memory."""
    peaks: list[str] = []
    actors, most = options.actors, options.ray_records or faces.num_images

    def work() -> int:
        count, seen = watched(lambda: stream_through_ray(faces, str(packed), actors, most))
        peaks.append(seen)
        return int(count)

    with ray_session(actors):
        rates.add(f"packed, {actors} Ray actors, decoded", packed, work)
    print(f"streaming, {actors} Ray actors: {peaks[0]}")


def print_locally(rates: Rates, packed: Path, size: int) -> None:
    """Print rate and peak memory of debug mode's stream, in a new process."""
    imports = ["import time", "from benchmarks.stream import open_faces, stream_locally"]
    work = [
        "start = time.perf_counter()",
        "count = stream_locally(open_faces(sys.argv[1]), 256)",
        "print(count, time.perf_counter() - start)",
    ]
    peak, printed = peak_mb(imports, work, str(packed))
    count, took = printed.split()
    rates.row("packed, debug mode, decoded", int(count), float(took))
    print(f"streaming, debug mode: + {peak:.0f} MB, {peak * 2**20 / size:.2f} of the data")


if __name__ == "__main__":
    main()
