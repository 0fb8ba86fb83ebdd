"""What an audit finds of planted faults, and what an audit of many embeddings costs.

    python -m benchmarks.audit                            # the table of planted faults
    python -m benchmarks.audit --size 500000              # time and memory, against the bare search of faiss

Faults: generated faces whose embeddings are made, with 5 % of the test set's identities in the training set, 3 % of
labels swapped, and 2 % of pictures copied: re-encoded at quality 50 and cropped by up to 15 % of the side. Within an
identity, embeddings scatter so much that the mean cosine of two images is the one given.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.audit.findings import COPIES, LABELS, LEAKS
from lafs_ray.audit.session import Audit, run_audit
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import encode_face
from lafs_ray.synthetic.identity import sample_identity

WIDTH, IMAGES = 512, 10
SHARED, SWAPPED, COPIED = 0.05, 0.03, 0.02
ROWS = 8192


def embeddings(identities: NDArray[np.int64], cosine: float, seed: int, stream: int = 0) -> NDArray[np.float32]:
    """Return made embeddings; two of one identity have this cosine in the mean, float32 [n, 512].

    Streams have the same identities and other images.
    """
    rows = np.empty((len(identities), WIDTH), np.float32)
    noise = np.random.default_rng([seed, 1, stream])
    for start in range(0, len(identities), ROWS):
        block = identities[start : start + ROWS]
        numbers, inverse = np.unique(block, return_inverse=True)
        centers = np.stack([np.random.default_rng([seed, 0, n]).standard_normal(WIDTH) for n in numbers])
        scatter = noise.standard_normal((len(block), WIDTH)) * np.sqrt(1 / cosine - 1)
        rows[start : start + len(block)] = centers[inverse] + scatter
    return rows


def write_parquet(
    path: Path, rows: NDArray[np.float32], labels: NDArray[np.int64], faces: str, keys: list[str]
) -> None:
    """Write embeddings as `jobs/embed.py` does, those of a folder of image files."""
    schema = pa.schema(
        {"key": pa.string(), "label": pa.int64(), "vector": pa.list_(pa.float32(), rows.shape[1])},
        metadata={"faces": faces, "faces_color_order": "rgb"},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), ROWS):
            block = rows[start : start + ROWS]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), rows.shape[1])
            stop = start + len(block)
            writer.write_table(pa.table([pa.array(keys[start:stop]), pa.array(labels[start:stop]), vectors], schema))


def copied(jpeg: bytes, generator: np.random.Generator) -> bytes:
    """Crop by up to 15 % of the side, scale back, and encode at quality 50."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    side = pixels.shape[0]
    size = side - int(generator.integers(0, round(0.15 * side) + 1))
    y, x = generator.integers(0, side - size + 1, 2)
    scaled = cv2.resize(pixels[y : y + size, x : x + size], (side, side))
    return cv2.imencode(".jpg", scaled, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()


class Planted:
    """A training and a test set with faults, and which they are.

    Args:
        folder: for pictures and embeddings.
        num_identities: of the training set; the test set has a fifth of it.
        cosine: mean cosine of two images of one identity.
        seed: of everything.
    """

    def __init__(self, folder: Path, num_identities: int, cosine: float, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        true = np.repeat(np.arange(num_identities), IMAGES)
        chosen = generator.permutation(len(true))
        self.swapped = set(chosen[: round(SWAPPED * len(true))].tolist())
        sources = np.sort(chosen[-round(COPIED * len(true)) :])
        labels = true.copy()
        moved = np.array(sorted(self.swapped))
        labels[moved] = (true[moved] + generator.integers(1, num_identities, len(moved))) % num_identities
        jpegs, rows = pictures(true, seed, 0), embeddings(true, cosine, seed)
        jpegs += [copied(jpegs[n], generator) for n in sources.tolist()]
        near = rows[sources] + 0.3 * generator.standard_normal((len(sources), WIDTH)).astype(np.float32)
        self.copies = {(n, len(true) + place) for place, n in enumerate(sources.tolist())}
        num_test = num_identities // 5
        self.shared = set(range(round(SHARED * num_identities)))
        test = np.repeat([*self.shared, *range(num_identities, num_identities + num_test)], IMAGES)
        self.train = write_set(
            folder / "train", jpegs, np.concatenate([rows, near]), np.concatenate([labels, labels[sources]])
        )
        self.test = write_set(folder / "test", pictures(test, seed, IMAGES), embeddings(test, cosine, seed, 1), test)

    def score(self, audit: Audit) -> list[tuple[str, int, float, float]]:
        """Return kind of fault, number planted, precision and recall."""
        found: dict[str, set[object]] = {kind: set() for kind in (*LEAKS, *COPIES, *LABELS)}
        for one in audit.findings:
            pairs = zip(one.rows.tolist(), one.others.tolist(), strict=True)
            if one.kind == LEAKS[2]:
                found[one.kind] |= {int(one.second.labels[other]) for _, other in pairs}
            else:
                found[one.kind] |= set(one.rows.tolist() if one.kind in LABELS else pairs)
        # A copy of a swapped image is a swapped one as well.
        swapped = self.swapped | {copy for source, copy in self.copies if source in self.swapped}
        truth = {"shared identities": (self.shared, found[LEAKS[2]]), "swapped labels": (swapped, found[LABELS[0]])}
        truth["copies"] = (self.copies, found[COPIES[0]] | found[COPIES[1]])
        return [
            (name, len(planted), len(planted & seen) / max(len(seen), 1), len(planted & seen) / len(planted))
            for name, (planted, seen) in truth.items()
        ]


def pictures(identities: NDArray[np.int64], seed: int, first: int) -> list[bytes]:
    """Return generated faces, encoded, ten of each identity from number `first` on."""
    return [
        encode_face(sample_identity(seed, n), sample_capture(seed, n, first + place % IMAGES))
        for place, n in enumerate(identities.tolist())
    ]


def write_set(folder: Path, jpegs: list[bytes], rows: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Write pictures and embeddings; return the path of these."""
    folder.mkdir()
    keys = [f"{number:08}.jpg" for number in range(len(jpegs))]
    for key, jpeg in zip(keys, jpegs, strict=True):
        (folder / key).write_bytes(jpeg)
    path = folder.with_suffix(".parquet")
    write_parquet(path, rows, labels, str(folder), keys)
    return str(path)


def print_faults(num_identities: int, cosines: list[float]) -> None:
    """Print the table of planted faults."""
    print(f"{num_identities} identities × {IMAGES} images; faults planted, precision and recall")
    for cosine in cosines:
        with tempfile.TemporaryDirectory() as folder:
            planted = Planted(Path(folder), num_identities, cosine)
            scratch = Path(folder) / "scratch"
            scratch.mkdir()
            audit = run_audit(planted.train, [planted.test], str(scratch), apply_in_process)
            for name, count, precision, recall in planted.score(audit):
                print(f"cosine {cosine:.2f}  {name:18} {count:5}  {precision:6.3f} {recall:6.3f}")


def made_parquet(path: Path, size: int) -> None:
    """Write `size` embeddings, 25 of each identity, a block of rows at a time."""
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "vector": pa.list_(pa.float32(), WIDTH)})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, size, 25 * 320):
            labels = np.arange(start, min(start + 25 * 320, size)) // 25
            rows = embeddings(labels, 0.4, 0, start)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), WIDTH)
            keys = pa.array([str(number) for number in range(start, start + len(rows))])
            writer.write_table(pa.table([keys, pa.array(labels), vectors], schema))


def bare_search(path: str) -> None:
    """Search the ten nearest of all embeddings with faiss alone, with the audit's index."""
    from lafs_ray.audit.embeddings import read_embeddings
    from lafs_ray.audit.nearest import Gallery

    with tempfile.TemporaryDirectory() as folder:
        vectors = read_embeddings(path, f"{folder}/rows.raw")[0].vectors
        started = time.perf_counter()
        Gallery(vectors, folder).search(vectors, 10, apply_in_process)
        print(f"{time.perf_counter() - started:.1f}")


def complete_audit(path: str) -> None:
    """Audit the embeddings alone."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        audit = run_audit(path, [], folder, apply_in_process, read_faces=False)
        print(f"{time.perf_counter() - started:.1f} {sum(map(len, audit.findings))}")


def measured(what: str, path: Path) -> tuple[float, float]:
    """Run one of the two in a process of its own; return seconds and peak memory in GiB, mapped files included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    command = [sys.executable, "-m", "benchmarks.audit", "--only", what, "--path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before)
    return float(done.stdout.split()[0]), peak / (1 << 20)


def print_size(size: int) -> None:
    """Print time and memory of an audit of `size` embeddings, and its ratio to the search alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.parquet"
        made_parquet(path, size)
        search_s, search_gib = measured("search", path)
        audit_s, audit_gib = measured("audit", path)
    print(f"{size} embeddings of {WIDTH}, {os.cpu_count()} CPUs")
    print(f"search alone {search_s:8.1f} s  {search_gib:.2f} GiB")
    print(f"audit        {audit_s:8.1f} s  {audit_gib:.2f} GiB  {audit_s / search_s:.2f} × the search")


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=1000, help="of the planted faults (1000)")
    parser.add_argument("--cosines", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    parser.add_argument("--size", type=int, help="embeddings of the benchmark of time and memory")
    parser.add_argument("--only", choices=["search", "audit"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        {"search": bare_search, "audit": complete_audit}[options.only](options.path)
        return
    print(f"{date.today()}, {platform.processor() or platform.machine()}")
    if options.size:
        print_size(options.size)
    else:
        print_faults(options.identities, options.cosines)


if __name__ == "__main__":
    main()
