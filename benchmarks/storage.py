"""Read from an S3 server on loopback that takes 50 ms for every answer, in five ways.

    python -m benchmarks.storage --portions 3

moto serves a set of generated faces, ordered by identity, from a process of its own. Every way
reads the same portions (256 records each, as one read task does) in the order of a training run
with `data.chunk_records: 4`, and "trains" on each for a while. What is told is the time that the
training would wait for records, and the requests made; ratios are to one request a record.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pyarrow as pa

from benchmarks.pack import write_ordered
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem, ranged_reads
from lafs_ray.data.io.block_cache import BlockCache
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.data.sampler import BLOCK_ROWS, BLOCK_STEPS, EpochSampler
from lafs_ray.training.input_pipeline import Preprocessor, local_stream, read_records

EACH = 40
ONE_BY_ONE, JOINED = {"_GAP_BYTES": -1, "_REMOTE_READS": 1}, {"_REMOTE_READS": 1}


def serve(pipe: Connection) -> None:
    """The server's process: takes a latency, answers with the requests since the one before."""
    from tests.object_store import object_store

    with object_store() as store:
        pipe.send(store.endpoint)
        while (latency := pipe.recv()) is not None:
            pipe.send(sum(store.counts().values()))
            store.calm()
            store.latency_s = latency


@contextmanager
def server() -> Iterator[tuple[str, Callable[[float], int]]]:
    """Its endpoint, and a function that sets the latency and returns the requests since then."""
    # A fork, before this process has threads: anew it would import all of torch.
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
    """Put the files of a folder into the store."""
    for path in sorted(folder.iterdir()):
        with filesystem.atomic_write(filesystem.join(uri, path.name)) as file:
            file.write(path.read_bytes())


def plan_of(faces: FaceSet, chunk_records: int) -> EpochSampler:
    """One slot of rows, so that a window is one portion."""
    return EpochSampler(faces.num_images, BLOCK_ROWS, 0, chunk_records)


def wait_for_reads(faces: FaceSet, portions: int, training_s: float, chunk_records: int) -> float:
    """Seconds that reading the portions takes, one after the other, each before it is needed."""
    plan, waited = plan_of(faces, chunk_records), 0.0
    for (portion,) in plan.windows(0, portions * BLOCK_STEPS):
        start = time.perf_counter()
        rows = read_records(faces, plan, portion)
        waited += time.perf_counter() - start
        assert not any(rows["error"])
        time.sleep(training_s)
    return waited


def wait_for_stream(faces: FaceSet, portions: int, training_s: float, chunk_records: int) -> float:
    """The same through debug mode's stream, which reads ahead; decoding included."""
    plan, waited = plan_of(faces, chunk_records), 0.0
    crop = Preprocessor(faces, "rgb", 0, lambda columns: dict(columns))
    start = time.perf_counter()
    for batch in local_stream(faces, plan, crop, 0, portions * BLOCK_STEPS):
        waited += time.perf_counter() - start
        assert not batch.skipped
        time.sleep(training_s / BLOCK_STEPS)
        start = time.perf_counter()
    return waited + time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--portions", type=int, default=3, help="portions of 256 records")
    parser.add_argument("--images", type=int, default=20_480, help="a multiple of 40 × shards")
    # moto copies a whole object for every range of it: many small objects keep that cheap.
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--training", type=float, default=1.0, help="seconds on each portion")
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    with tempfile.TemporaryDirectory() as folder, server() as (endpoint, latency):
        measure(Path(folder), endpoint, latency, options)


def measure(
    root: Path, endpoint: str, latency: Callable[[float], int], options: argparse.Namespace
) -> None:
    """Make both sets, put them into the store and read them in every way."""
    query = f"endpoint_override={endpoint}&scheme=http&region=us-east-1"
    filesystem.resolve(f"s3://faces?{query}&allow_bucket_creation=true")[0].create_dir("faces")
    (root / "sorted").mkdir()
    for shard in range(options.shards):
        write_ordered(root / "sorted" / f"{shard}.rec", options.images // options.shards, EACH)
    named = PackOptions((str(root / "sorted"),), str(root / "packed"), options.shards)
    pack_faces(named, say=lambda _: None)
    uris = {name: f"s3://faces/{name}?{query}" for name in ("sorted", "packed")}
    for name, uri in uris.items():
        upload(root / name, uri)
    faces, packed = open_faces(uris["sorted"]), open_faces(uris["packed"])
    cached = open_faces(uris["sorted"], cache=BlockCache(str(root / "cache"), 10**10))
    print(
        f"{date.today()}  Python {platform.python_version()}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {options.latency * 1e3:.0f} ms a "
        f"request, {options.images} images in {options.shards} shards, "
        f"{faces.sizes.sum() / 1e6:.0f} MB; {options.portions} portions of 256 records"
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
        ("(b) neighbors joined", wait_for_reads, faces, 4, JOINED),
        ("(c) 16 at once", wait_for_reads, faces, 4, {}),
        ("(d) read ahead (debug mode)", wait_for_stream, faces, 4, {}),
        ("    filling a disk cache of 1 MiB blocks", wait_for_reads, cached, 4, {}),
        ("(e) from the filled disk cache", wait_for_reads, cached, 4, {}),
        ("(f) packed set, chunk_records 256", wait_for_reads, packed, 256, {}),
        ("(g) the same, read ahead", wait_for_stream, packed, 256, {}),
    ):
        latency(options.latency)
        with mock.patch.multiple(ranged_reads, **patches) if patches else mock.patch.dict({}):
            waited = work(found, options.portions, options.training, chunk_records)
        baseline = baseline or waited
        print(f"{name:44}{waited:12.2f}{waited / baseline:10.3f}{latency(0.0):10}")


if __name__ == "__main__":
    main()
