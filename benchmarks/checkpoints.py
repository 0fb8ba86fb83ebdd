"""How long steps take while checkpoints go to a slow storage: written in the step, or beside it.

    python -m benchmarks.checkpoints --steps 60 --every 4 --mb-per-s 20

Both runs are those of the debug configuration, in one process, in turns (no checkpoints at all as the baseline), on a
disk that takes bytes at the given rate. Prints median, 95th percentile and maximum of the time of a step, from one
batch to the next, each also as a ratio to the baseline's median, and the time of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.synthetic import datasets
from lafs_ray.training.checkpoint.async_writer import CheckpointWriter
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import run_rank

CONFIG = Path(__file__).parent.parent / "configs" / "pretrain" / "debug.yaml"


class SlowFile:
    """A file that takes bytes at a rate.

    Args:
        file: what it writes to.
        bytes_per_s: the rate.
    """

    def __init__(self, file: BinaryIO, bytes_per_s: float) -> None:
        self._file, self._bytes_per_s = file, bytes_per_s

    def write(self, data: Any) -> int:
        """Write, as slowly as a busy network would."""
        size = memoryview(data).nbytes
        time.sleep(size / self._bytes_per_s)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def slow_storage(bytes_per_s: float) -> Iterator[None]:
    """Let all checkpoints in the block meet such a storage."""
    atomic_write = filesystem.atomic_write

    @contextlib.contextmanager
    def slow_write(uri: str) -> Iterator[BinaryIO]:
        with atomic_write(uri) as file:
            is_checkpoint = uri.endswith(".pt")
            yield cast(BinaryIO, SlowFile(file, bytes_per_s)) if is_checkpoint else file

    filesystem.atomic_write = slow_write
    try:
        yield
    finally:
        filesystem.atomic_write = atomic_write


@contextlib.contextmanager
def in_the_step() -> Iterator[None]:
    """Let every step wait for its checkpoint, as if there were no thread."""
    begin = CheckpointWriter.begin

    def begin_and_wait(writer: CheckpointWriter, step: int, state: Any) -> None:
        begin(writer, step, state)
        assert writer._running is not None
        writer._running[1].result()

    CheckpointWriter.begin = begin_and_wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        CheckpointWriter.begin = begin  # type: ignore[method-assign]


def train(inputs: RunInputs) -> tuple[list[float], float]:
    """Return seconds of each step but the first, and of the run."""
    preprocess, starts = inputs.preprocessor(), []

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        # Preprocessed beforehand: only the step is timed.
        batches = list(local_stream(inputs.faces, inputs.sampler, preprocess, first, stop))
        for batch in batches:
            starts.append(time.perf_counter())
            yield batch
        starts.append(time.perf_counter())

    run_rank(inputs, stream, device=torch.device("cpu"))
    total = time.perf_counter() - starts[0]
    return [after - before for before, after in itertools.pairwise(starts[1:])], total


def open_run(folder: Path, name: str, options: argparse.Namespace, every: int) -> RunInputs:
    """A run of its own in the folder."""
    settings = [f"run.name={name}", f"run.storage={folder}/runs", f"data.path={folder}/faces"]
    # No landmark CNN: preprocessing is not timed.
    settings += ["landmarks.source=grid", "model.num_landmarks=196"]
    settings += [f"duration={options.steps} steps", f"checkpoints.every={every} steps"]
    settings += [f"batch_size={options.batch}", f"head.num_prototypes={options.prototypes}"]
    return prepare_run(load(PretrainConfig, str(CONFIG), [*settings, "log.every_steps=1000000"]))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Run the three in turns and print."""
    datasets.write_faces(str(folder / "faces"), num_identities=8, images_per_identity=8, seed=0)
    names = ("no checkpoints", "in the step", "beside the step")
    steps: dict[str, list[float]] = {name: [] for name in names}
    total: dict[str, list[float]] = {name: [] for name in names}
    size = 0
    for repeat in range(options.repeats):
        for name in names:
            every = options.every if name != names[0] else options.steps
            inputs = open_run(folder, f"{name.replace(' ', '_')}-{repeat}", options, every)
            rate = options.mb_per_s * 1e6
            slow = slow_storage(rate) if name != names[0] else contextlib.nullcontext()
            with slow, in_the_step() if name == names[1] else contextlib.nullcontext():
                times, seconds = train(inputs)
            steps[name] += times
            total[name].append(seconds)
            size = os.path.getsize(inputs.folder().checkpoint_uri(options.steps))
    print(
        f"{date.today()}  torch {torch.__version__}, 1 thread of {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}; {options.steps} steps, {options.repeats} runs of each, a "
        f"checkpoint of {size / 1e6:.1f} MB every {options.every} steps at {options.mb_per_s:g} "
        f"MB/s ({size / options.mb_per_s / 1e6:.2f} s)"
    )
    base = statistics.median(steps[names[0]])
    titles = "".join(f"{title:>20}" for title in ("median, ms", "p95, ms", "max, ms"))
    print(f"{'checkpoints written':20}{titles}{'run, s':>10}")
    for name in names:
        ordered = sorted(steps[name])
        quantiles = statistics.median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1]
        shown = "".join(f"{1e3 * one:12.0f} ({one / base:4.1f}×)" for one in quantiles)
        print(f"{name:20}{shown}{statistics.median(total[name]):10.1f}")


def main() -> None:
    """Print the distribution of step times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--mb-per-s", type=float, default=20.0, help="what the storage takes")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()
