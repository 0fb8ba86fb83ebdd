"""What Ray costs a training step: the same run in TorchTrainer with Ray Data and without Ray.

    python -m benchmarks.ray_cost --steps 24 --batch 8

Three runs of the debug configuration over plain grid patches, with the same batches, which the
equal losses show:

- bare: the loop alone, all batches cut beforehand;
- debug: `compute.workers=0`, which reads ahead in a thread and cuts between the steps;
- Ray: one worker of `TorchTrainer`, which gets its batches from Ray Data's actors.

With `--step-sleep 0.25` two runs are compared, bare and Ray, whose steps sleep as long as one on a GPU takes; see
`benchmarks/sleeping_step.py`.

Times are those of metrics.jsonl, a line a step. `train` is a step without its wait for the batch. Actors and trainer
share this machine's cores: with fewer cores than `1 + --actors`, the trainer pays for the cutting too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

# By default Ray's workers give way to all other work (nice 15).
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import torch

from benchmarks import sleeping_step
from benchmarks.views import cpu_name
from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.engine.ray_train import run_on_ray
from lafs_ray.synthetic import datasets
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.monitoring.metrics import TIMES
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import run_local, run_rank, training_device

PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
CONFIG = Path(__file__).parent.parent / "configs" / "pretrain" / "debug.yaml"


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        metrics: its lines without times.
        waits: seconds that each step waited for its batch.
        trains: seconds of the rest of each step.
        whole: seconds from start to end, those of Ray's processes included.
    """

    metrics: list[dict[str, Any]]
    waits: list[float]
    trains: list[float]
    whole: float


def run_bare(inputs: RunInputs) -> None:
    """The loop alone, on the same device."""
    preprocess = inputs.preprocessor()
    batches = list(local_stream(inputs.faces, inputs.sampler, preprocess, 0, inputs.length.total_steps))

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return iter(batches[first:stop])

    run_rank(inputs, stream, device=training_device(inputs.config))


def run_debug(inputs: RunInputs) -> None:
    """Debug mode."""
    run_local(inputs)


def run_ray(inputs: RunInputs) -> None:
    """Through TorchTrainer, with its output suppressed."""
    with contextlib.redirect_stdout(io.StringIO()):
        run_on_ray(inputs)


WAYS: dict[str, Callable[[RunInputs], None]] = {"bare": run_bare, "debug": run_debug, "Ray": run_ray}


def measure(folder: Path, name: str, repeat: int, options: argparse.Namespace) -> Result:
    """One run of one way, in a folder of its own."""
    settings = [f"run.name={name}-{repeat}", f"run.storage={folder}/runs"]
    settings += [f"data.path={folder}/faces", f"duration={options.steps} steps"]
    settings += ["landmarks.source=grid", "model.num_landmarks=196", f"model.size={options.size}"]
    settings += [f"batch_size={options.batch}", f"head.num_prototypes={options.prototypes}"]
    settings += [f"checkpoints.every={options.steps} steps", "log.every_steps=1"]
    settings += ["optim.warmup=1 steps"]
    settings += [f"compute.workers={int(name == 'Ray')}", "monitoring.wait_share=0"]
    settings += [f"compute.cpus_per_worker={options.threads}", f"compute.device={options.device}"]
    # Compiling would take longer than the run.
    settings += ["compute.compile=false", f"compute.precision={PRECISION[options.device]}"]
    settings += [f"ingest.actors_per_worker={options.actors}"]
    inputs = prepare_run(load(PretrainConfig, str(CONFIG), settings))
    start = time.perf_counter()
    WAYS[name](inputs)
    whole = time.perf_counter() - start
    lines = read_metrics(filesystem.join(inputs.folder().uri, "metrics.jsonl"))
    assert len(lines) == options.steps, f"{name}: {len(lines)} lines of {options.steps} steps"
    seconds = [options.batch / line["images_per_s"] for line in lines]
    waits = [s * line["wait_share"] for s, line in zip(seconds, lines, strict=True)]
    trains = [s - wait for s, wait in zip(seconds, waits, strict=True)]
    metrics = [{key: v for key, v in line.items() if key not in TIMES} for line in lines]
    return Result(metrics, waits, trains, whole)


def report(results: dict[str, list[Result]]) -> None:
    """Print medians over the steps of all runs but each first one, and ratios to the bare loop."""
    titles = ("train, ms", "to bare", "step, ms", "to bare", "wait share", "first batch, s", "run, s")
    print(f"{'':8}" + "".join(f"{title:>16}" for title in titles))
    base: tuple[float, float] | None = None
    for name, runs in results.items():
        trains = [s for run in runs for s in run.trains[1:]]
        waits = [s for run in runs for s in run.waits[1:]]
        steps = [sum(pair) for pair in zip(trains, waits, strict=True)]
        train, step = statistics.median(trains), statistics.median(steps)
        base = base or (train, step)
        first = statistics.median(run.waits[0] for run in runs)
        whole = statistics.median(run.whole for run in runs)
        print(
            f"{name:8}{1e3 * train:16.1f}{train / base[0]:14.3f} ×{1e3 * step:16.1f}"
            f"{step / base[1]:14.3f} ×{sum(waits) / sum(steps):16.1%}{first:16.2f}{whole:16.1f}"
        )


def main() -> None:
    """Run the three in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--device", choices=list(PRECISION), default="cpu")
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1, help="of the trainer")
    parser.add_argument("--actors", type=int, default=1, help="that cut for Ray's worker")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--step-sleep", type=float, help="seconds that a step sleeps in place of training")
    parser.add_argument("--blocks-per-execution", type=int, default=2048, help="of Ray Data, with --step-sleep")
    options = parser.parse_args()
    print(
        f"{date.today()}  torch {torch.__version__}, ray {ray.__version__}, Python "
        f"{platform.python_version()}, {cpu_name()}, {options.threads} thread of "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n{options.size}, batch "
        f"{options.batch}, {options.steps} steps, {options.actors} actors, {options.repeats} runs"
    )
    if options.step_sleep is not None:
        with tempfile.TemporaryDirectory() as folder:
            sleeping_step.compare(Path(folder), options)
            ray.shutdown()
        return
    results: dict[str, list[Result]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        datasets.write_faces(str(faces), num_identities=32, images_per_identity=8, seed=0)
        for repeat in range(options.repeats):
            for name in WAYS:
                results[name].append(measure(Path(folder), name, repeat, options))
        ray.shutdown()
    expected = results["bare"][0].metrics
    for name, runs in results.items():
        # A GPU adds up in an order of its own.
        if options.device == "cpu" and any(run.metrics != expected for run in runs):
            sys.exit(f"{name}: other losses than the bare loop's")
    if options.device == "cpu":
        print("equal losses in all runs")
    report(results)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
