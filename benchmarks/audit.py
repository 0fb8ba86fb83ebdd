"""What an audit finds of planted faults, and what an audit of many embeddings costs.

    python -m benchmarks.audit                            # the table of planted faults
    python -m benchmarks.audit --real labeled.parquet     # the same in the embeddings of a labeled set of one's own
    python -m benchmarks.audit --size 500000              # time and memory, beside a bare search by faiss

Faults: 5 % of the identities are also in the test set, 3 % of labels are swapped, and 2 % of pictures are copied:
re-encoded at quality 50 and cropped by up to 15 % of the side. Pictures are generated, and embeddings made of 64
numbers, in which identities scatter so much that the mean cosine of two images of one is the one given. How hard that
is says the accuracy of 20,000 pairs at their best threshold. In embeddings of one's own no pictures are copied.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.audit.findings import COPIES, FACELESS, LABELS, LEAKS
from lafs_ray.audit.session import Audit, run_audit
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.datasets import encode_face
from lafs_ray.synthetic.identity import sample_identity

WIDTH, NARROW, IMAGES = 512, 64, 10
SHARED, SWAPPED, COPIED = 0.05, 0.03, 0.02
ROWS = 8192


def embeddings(
    identities: NDArray[np.int64], cosine: float, seed: int, stream: int = 0, *, width: int = WIDTH
) -> NDArray[np.float32]:
    """Return made embeddings; two of one identity have this cosine in the mean, float32 [n, width].

    Streams have the same identities and other images.
    """
    rows = np.empty((len(identities), width), np.float32)
    noise = np.random.default_rng([seed, 1, stream])
    for start in range(0, len(identities), ROWS):
        block = identities[start : start + ROWS]
        numbers, inverse = np.unique(block, return_inverse=True)
        centers = np.stack([np.random.default_rng([seed, 0, n]).standard_normal(width) for n in numbers])
        scatter = noise.standard_normal((len(block), width)) * np.sqrt(1 / cosine - 1)
        rows[start : start + len(block)] = centers[inverse] + scatter
    return rows


def write_parquet(path: Path, rows: NDArray[np.float32], labels: NDArray[np.int64], faces: str) -> str:
    """Write embeddings as `jobs/embed.py` does, those of a folder of image files; return the path."""
    keys = pa.array([f"{number:08}.jpg" for number in range(len(rows))])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = pa.table({"key": keys, "label": pa.array(labels), "vector": vectors})
    pq.write_table(table.replace_schema_metadata({"faces": faces, "faces_color_order": "rgb"}), path)
    return str(path)


def copied(jpeg: bytes, generator: np.random.Generator) -> bytes:
    """Crop by up to 15 % of the side, scale back, and encode at quality 50."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    side = pixels.shape[0]
    size = side - int(generator.integers(0, round(0.15 * side) + 1))
    y, x = generator.integers(0, side - size + 1, 2)
    scaled = cv2.resize(pixels[y : y + size, x : x + size], (side, side))
    return cv2.imencode(".jpg", scaled, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()


@dataclass(frozen=True)
class Faults:
    """What was planted.

    Args:
        train: Parquet file of the training set.
        test: that of the test set.
        shared: identities of the test set that the training set has.
        swapped: rows of the training set.
        copies: pairs of its rows.
        accuracy: of pairs, at their best threshold.
    """

    train: str
    test: str
    shared: set[int]
    swapped: set[int]
    copies: set[tuple[int, int]]
    accuracy: float

    def score(self, audit: Audit) -> list[tuple[str, int, int, int]]:
        """Return kind of fault, number planted, number claimed, and how many of the claimed were planted."""
        found: dict[str, set[object]] = {kind: set() for kind in (*LEAKS, *COPIES, *LABELS, FACELESS)}
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
            (name, len(planted), len(seen), len(planted & seen)) for name, (planted, seen) in truth.items() if planted
        ]


class Made:
    """Generated pictures of a training set and a test set of a fifth of its identities, with 5 % of them in both.

    Args:
        folder: for the pictures.
        num_identities: of the training set.
    """

    def __init__(self, folder: Path, num_identities: int) -> None:
        generator = np.random.default_rng(0)
        self.true = np.repeat(np.arange(num_identities), IMAGES)
        self.sources = np.sort(generator.permutation(len(self.true))[: round(COPIED * len(self.true))])
        self.shared = set(range(round(SHARED * num_identities)))
        others = range(num_identities, num_identities + num_identities // 5)
        self.test = np.repeat([*self.shared, *others], IMAGES)
        jpegs = pictures(self.true, 0)
        jpegs += [copied(jpegs[n], generator) for n in self.sources.tolist()]
        self.folder = folder
        write_pictures(folder / "train", jpegs)
        write_pictures(folder / "test", pictures(self.test, IMAGES))

    def faults(self, cosine: float) -> Faults:
        """Write embeddings in which two images of one identity have this mean cosine."""
        generator = np.random.default_rng(1)
        rows = embeddings(self.true, cosine, 0, width=NARROW)
        labels, swapped = swap(self.true, generator)
        near = rows[self.sources] + 0.3 * generator.standard_normal((len(self.sources), NARROW)).astype(np.float32)
        complete, known = np.concatenate([rows, near]), np.concatenate([labels, labels[self.sources]])
        test = embeddings(self.test, cosine, 0, 1, width=NARROW)
        copies = {(n, len(rows) + place) for place, n in enumerate(self.sources.tolist())}
        files = [
            write_parquet(self.folder / f"{name}.parquet", vectors, numbers, str(self.folder / name))
            for name, vectors, numbers in (("train", complete, known), ("test", test, self.test))
        ]
        return Faults(*files, self.shared, swapped, copies, pair_accuracy(rows, self.true))


def real_faults(path: str, folder: Path) -> Faults:
    """Plant faults into embeddings of a labeled set; a fifth of the identities, and half of 5 %, are the test set."""
    table = pq.read_table(path, columns=["label", "vector"])
    true = table["label"].to_numpy()
    rows = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(true), -1)
    generator = np.random.default_rng(0)
    identities = generator.permutation(np.unique(true))
    shared, others = np.split(identities[: len(identities) // 4], [round(SHARED * len(identities))])
    is_test = np.isin(true, others) | (np.isin(true, shared) & (generator.random(len(true)) < 0.5))
    labels, swapped = swap(true[~is_test], generator)
    # Other numbers in the test set: names say nothing.
    test = write_parquet(folder / "test.parquet", rows[is_test], true[is_test] + 1_000_000, "")
    train = write_parquet(folder / "train.parquet", rows[~is_test], labels, "")
    accuracy = pair_accuracy(rows - rows.mean(axis=0), true)
    return Faults(train, test, {int(n) + 1_000_000 for n in shared}, swapped, set(), accuracy)


def swap(true: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.int64], set[int]]:
    """Give 3 % of the rows the label of another identity; return labels and these rows."""
    identities, index = np.unique(true, return_inverse=True)
    moved = generator.permutation(len(true))[: round(SWAPPED * len(true))]
    labels = true.copy()
    steps = generator.integers(1, len(identities), len(moved))
    labels[moved] = identities[(index[moved] + steps) % len(identities)]
    return labels, set(moved.tolist())


def pair_accuracy(rows: NDArray[np.float32], true: NDArray[np.int64]) -> float:
    """Return the accuracy of 10,000 pairs of one identity and as many of two, at the best threshold for them."""
    generator = np.random.default_rng(2)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.argsort(true, kind="stable")
    starts = np.searchsorted(true[order], true)
    counts = np.searchsorted(true[order], true, side="right") - starts
    first = generator.integers(0, len(true), 40_000)
    mates = order[starts[first] + generator.integers(0, counts[first])]
    strangers = generator.integers(0, len(true), len(first))
    same = np.einsum("nd,nd->n", unit[first], unit[mates])[first != mates][:10_000]
    other = np.einsum("nd,nd->n", unit[first], unit[strangers])[true[first] != true[strangers]][:10_000]
    levels = np.linspace(-1, 1, 401)
    right = [np.mean(same >= level) / 2 + np.mean(other < level) / 2 for level in levels]
    return float(max(right))


def pictures(identities: NDArray[np.int64], first: int) -> list[bytes]:
    """Return generated faces, encoded, ten of each identity from number `first` on."""
    return [
        encode_face(sample_identity(0, n), sample_capture(0, n, first + place % IMAGES))
        for place, n in enumerate(identities.tolist())
    ]


def write_pictures(folder: Path, jpegs: list[bytes]) -> None:
    """Write pictures as files that are named by their row."""
    folder.mkdir()
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number:08}.jpg").write_bytes(jpeg)


def print_faults(title: str, faults: Faults, *, read_faces: bool) -> None:
    """Audit, and print a line for each kind of fault."""
    with tempfile.TemporaryDirectory() as scratch:
        audit = run_audit(faults.train, [faults.test], scratch, apply_in_process, read_faces=read_faces)
    for name, planted, claimed, true in faults.score(audit):
        precision = f"{true / claimed:.3f}" if claimed else "    –"
        print(
            f"{title}, pair accuracy {faults.accuracy:.3f}  {name:18} planted {planted:5}  claimed {claimed:5}  "
            f"precision {precision}  recall {true / planted:.3f}",
            flush=True,
        )


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
    """Search the ten nearest of all embeddings with faiss alone: the audit's kind of index, vectors in memory."""
    import faiss

    column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(-1, WIDTH).copy()
    rows -= rows.mean(axis=0)
    faiss.normalize_L2(rows)
    num_lists = int(3 * len(rows) ** 0.5)
    coarse = faiss.IndexFlatIP(WIDTH)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(coarse, WIDTH, num_lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.train(rows[np.random.default_rng(0).permutation(len(rows))[: 40 * num_lists]])
    index.add(rows)
    index.nprobe = 16
    found = index.search(rows, 11)[1]
    spent_s = time.process_time()
    shared = []
    for row in np.random.default_rng(1).permutation(len(rows))[:200].tolist():
        exact = np.argpartition(-(rows @ rows[row]), 10)[:11]
        shared.append(len({*found[row].tolist()} & {*exact.tolist()} - {row}))
    print(f"{spent_s:.1f} {np.mean(shared) / 10:.3f} of the ten nearest found, of 200 rows")


def complete_audit(path: str) -> None:
    """Audit the embeddings alone."""
    with tempfile.TemporaryDirectory() as folder:
        audit = run_audit(path, [], folder, apply_in_process, read_faces=False)
        print(f"{time.process_time():.1f} {sum(map(len, audit.findings))} findings")


def measured(what: str, path: Path) -> tuple[float, float, float, str]:
    """Run one of the two in a process of its own.

    Returns:
        Seconds, processor seconds, peak memory in GiB, mapped files included, and what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.audit", "--only", what, "--path", str(path)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"{what} ended with {process.returncode}")
        out.seek(0)
        # Its own count of processor seconds leaves out the comparison with the exact neighbors.
        spent_s, _, text = out.read().strip().partition(" ")
        return wall_s, float(spent_s), usage.ru_maxrss / (1 << 20), text


def print_size(size: int, repeats: int) -> None:
    """Print time and memory of an audit of `size` embeddings, and its ratio to the bare search, turn by turn."""
    print(f"{size} embeddings of {WIDTH}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.parquet"
        made_parquet(path, size)
        for _ in range(repeats):
            processor = {}
            for what in ("search", "audit"):
                wall_s, processor[what], gib, text = measured(what, path)
                print(
                    f"{what:6} {wall_s:8.1f} s, processor {processor[what]:8.1f} s, {gib:.2f} GiB; {text}", flush=True
                )
            print(f"audit: {processor['audit'] / processor['search']:.2f} × the processor time of the bare search")


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=300, help="of the planted faults (300)")
    parser.add_argument("--cosines", type=float, nargs="+", default=[0.7, 0.5, 0.35, 0.25])
    parser.add_argument("--real", metavar="PARQUET", help="embeddings of a labeled set")
    parser.add_argument("--size", type=int, help="embeddings of the benchmark of time and memory")
    parser.add_argument("--repeats", type=int, default=1, help="of that benchmark (1)")
    parser.add_argument("--only", choices=["search", "audit"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        {"search": bare_search, "audit": complete_audit}[options.only](options.path)
        return
    print(f"{date.today()}, {platform.processor() or platform.machine()}")
    if options.size:
        print_size(options.size, options.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.real:
            print_faults(options.real, real_faults(options.real, Path(folder)), read_faces=False)
            return
        made = Made(Path(folder), options.identities)
        for cosine in options.cosines:
            print_faults(f"cosine {cosine:.2f}", made.faults(cosine), read_faces=True)


if __name__ == "__main__":
    main()
