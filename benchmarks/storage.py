"""Read from an S3 server on loopback that takes 20 ms for every answer, in several ways.

    python -m benchmarks.storage --blocks 4

moto serves a set of generated faces, ordered by identity and packed, from a process of its own. The first table reads
shuffle blocks (256 records, what one read task reads) in the order of a training run, one after the other, and "trains"
on each for a while: seconds that training waits for records, and the requests made; ratios are to one request a record.
The second table reads blocks with several readers at once, as the read tasks of Ray Data do: records per second.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pyarrow as pa

from benchmarks.pack import write_ordered
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.data.sampler import BLOCK_ROWS, BLOCK_STEPS, EpochSampler, ShuffleBlock
from lafs_ray.training.input_pipeline import Columns, Preprocessor, local_stream, read_records, sample_indices

IMAGES_PER_IDENTITY = 40
ONE_BY_ONE = {"_MAX_GAP_BYTES": -1, "_CONCURRENT_READS": 1}
COALESCED = {"_CONCURRENT_READS": 1}
READERS = (1, 4, 16)


def serve(pipe: Connection) -> None:
    """Run the server: receive a latency, send the number of requests since the one before."""
    from tests.object_store import object_store

    with object_store() as store:
        pipe.send(store.endpoint)
        while (latency := pipe.recv()) is not None:
            requests = sum(store.counts().values())
            store.reset()
            store.latency_s = latency
            # Last: the next request may come at once, and a reset after it would forget it.
            pipe.send(requests)


@contextmanager
def server() -> Iterator[tuple[str, Callable[[float], int]]]:
    """Its endpoint, and a function that sets the latency and returns the requests since then."""
    # A fork, before this process has threads: a spawned one would import all of torch.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()

    def latency(seconds: float) -> int:
        ours.send(seconds)
        return int(ours.recv())

    yield ours.recv(), latency
    ours.send(None)
    process.join(10)


def upload(folder: Path, uri: str) -> None:
    """Copy the files of a folder into the store."""
    for path in sorted(folder.iterdir()):
        with filesystem.atomic_write(filesystem.join(uri, path.name)) as file:
            file.write(path.read_bytes())


def sampler_of(faces: FaceSet, chunk_records: int) -> EpochSampler:
    """Return a sampler of 32 rows a step: 8 steps are one shuffle block."""
    return EpochSampler(faces.num_images, BLOCK_ROWS, 0, chunk_records)


def read(faces: FaceSet, sampler: EpochSampler, block: ShuffleBlock) -> Columns:
    """Read a block's records, as a read task does."""
    return read_records(faces, *sample_indices(sampler, block))


def wait_for_reads(faces: FaceSet, blocks: int, training_s: float, chunk_records: int) -> float:
    """Seconds that reading the blocks takes, one after the other, each before it is needed."""
    sampler, waited = sampler_of(faces, chunk_records), 0.0
    for (block,) in sampler.blocks(0, blocks * BLOCK_STEPS):
        start = time.perf_counter()
        rows = read(faces, sampler, block)
        waited += time.perf_counter() - start
        assert not any(rows["error"])
        time.sleep(training_s)
    return waited


def wait_for_stream(faces: FaceSet, blocks: int, training_s: float, chunk_records: int) -> float:
    """The same through debug mode's stream, which reads ahead; decoding included."""
    sampler, waited = sampler_of(faces, chunk_records), 0.0
    preprocessor = Preprocessor(faces, "rgb", 0, lambda columns: dict(columns))
    start = time.perf_counter()
    for batch in local_stream(faces, sampler, preprocessor, 0, blocks * BLOCK_STEPS):
        waited += time.perf_counter() - start
        assert not batch.skipped
        time.sleep(training_s / BLOCK_STEPS)
        start = time.perf_counter()
    return waited + time.perf_counter() - start


def read_concurrently(faces: FaceSet, blocks: int, readers: int, chunk_records: int) -> float:
    """Records per second of so many readers, without decoding."""
    sampler = sampler_of(faces, chunk_records)
    chosen = itertools.islice(itertools.cycle(sampler.blocks(0, sampler.steps_per_epoch)), blocks)
    with ThreadPoolExecutor(readers) as pool:
        start = time.perf_counter()
        keys = pool.map(lambda one: read(faces, sampler, one[0])["key"], chosen)
        return sum(map(len, keys)) / (time.perf_counter() - start)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=4, help="shuffle blocks of 256 records")
    parser.add_argument("--images", type=int, default=20_480, help="a multiple of 40 × shards")
    # moto copies a whole object for every range of it: many small objects keep that cheap.
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--training", type=float, default=1.0, help="seconds on each block")
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    with tempfile.TemporaryDirectory() as folder, server() as (endpoint, latency):
        measure(Path(folder), endpoint, latency, options)


def measure(root: Path, endpoint: str, latency: Callable[[float], int], options: argparse.Namespace) -> None:
    """Make both sets, put them into the store and read them in every way."""
    query = f"endpoint_override={endpoint}&scheme=http&region=us-east-1"
    reading.resolve(f"s3://faces?{query}&allow_bucket_creation=true")[0].create_dir("faces")
    (root / "sorted").mkdir()
    for shard in range(options.shards):
        count = options.images // options.shards
        write_ordered(root / "sorted" / f"{shard}.rec", count, IMAGES_PER_IDENTITY)
    named = PackOptions((str(root / "sorted"),), str(root / "packed"), options.shards)
    pack_faces(named)
    uris = {name: f"s3://faces/{name}?{query}" for name in ("sorted", "packed")}
    for name, uri in uris.items():
        upload(root / name, uri)
    faces, packed = open_faces(uris["sorted"]), open_faces(uris["packed"])
    print(
        f"{date.today()}  Python {platform.python_version()}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {options.latency * 1e3:.0f} ms a "
        f"request, {options.images} images in {options.shards} shards, "
        f"{faces.sizes.sum() / 1e6:.0f} MB; {options.blocks} blocks of 256 records"
    )
    latency(options.latency)
    start = time.perf_counter()
    open_faces(uris["packed"])
    took = time.perf_counter() - start
    requests = latency(0.0) / options.shards
    print(f"opening the packed set: {took:.2f} s, {requests:.0f} requests a shard")
    print(f"{'':44}{'s of waiting':>12}{'of (a)':>10}{'requests':>10}")
    baseline = 0.0
    for name, work, found, chunk_records, patches in (
        ("(a) one request a record", wait_for_reads, faces, 4, ONE_BY_ONE),
        ("(b) neighbors coalesced", wait_for_reads, faces, 4, COALESCED),
        ("(c) 16 requests at once", wait_for_reads, faces, 4, {}),
        ("(d) read ahead (debug mode)", wait_for_stream, faces, 4, {}),
        ("(e) packed set, chunk_records 256", wait_for_reads, packed, 256, {}),
        ("(f) the same, read ahead", wait_for_stream, packed, 256, {}),
    ):
        latency(options.latency)
        with mock.patch.multiple(reading, **patches) if patches else mock.patch.dict({}):
            waited = work(found, options.blocks, options.training, chunk_records)
        baseline = baseline or waited
        print(f"{name:44}{waited:12.2f}{waited / baseline:10.3f}{latency(0.0):10}")
    print(f"{'readers at once, packed set':44}{'records/s':>12}")
    for readers in READERS:
        latency(options.latency)
        rate = read_concurrently(packed, options.blocks * readers, readers, 256)
        print(f"{readers:<44}{rate:12.0f}{latency(0.0):20}")


if __name__ == "__main__":
    main()
