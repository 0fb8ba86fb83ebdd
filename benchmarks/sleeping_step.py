"""The loop inside TorchTrainer beside the bare loop, with a step that sleeps as long as one on a GPU takes.

Used by `python -m benchmarks.ray_cost --step-sleep 0.25`: faces of a packed set with cached landmarks, one worker,
and Ray Data's executions short enough for one to end within the run. So what Ray adds to each step is seen on a machine
without a GPU, as long as its CPUs preprocess the batches in time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lafs_ray.cli.commands import execute
from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.engine import ray_train
from lafs_ray.synthetic import datasets
from lafs_ray.synthetic.landmark_table import write_landmarks
from lafs_ray.training import train_loop, train_step
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch, local_stream, split
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import run_rank

CONFIG = Path(__file__).parent.parent / "configs" / "pretrain" / "debug.yaml"
# Batches that the bare loop repeats; steps of a line of metrics.jsonl.
CUT_BEFORE, STEPS_PER_LINE = 8, 10


def sleep_in_steps(seconds: float) -> None:
    """Replace the training step of this process: tensors of the batch are made, then it sleeps."""

    def step(
        training: Any, batch: StepBatch, _: Any, poll_request: Callable[[], Any] = lambda: 0, *, reports: bool
    ) -> dict[str, torch.Tensor]:
        del reports
        for columns in split(batch, training.accumulation):
            train_step.to_device(columns, training.device)
        time.sleep(seconds)
        training.request = poll_request()
        return {"loss": torch.zeros(())}

    train_loop.train_step = step


def sleeping_worker(seconds: float) -> Callable[[dict[str, Any]], None]:
    """The function of a Ray Train worker whose steps sleep."""
    train_worker = ray_train.train_worker

    def worker(loop_config: dict[str, Any]) -> None:
        sleep_in_steps(seconds)
        train_worker(loop_config)

    return worker


def run_ray(inputs: RunInputs, seconds: float) -> None:
    """Through TorchTrainer, with its output suppressed."""
    plain = ray_train.train_worker
    ray_train.train_worker = sleeping_worker(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            ray_train.run_on_ray(inputs)
    finally:
        ray_train.train_worker = plain


def run_bare(inputs: RunInputs, seconds: float) -> None:
    """The loop alone, over a few batches that are there."""
    cut = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, CUT_BEFORE))

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return (replace(cut[step % len(cut)], step=step) for step in range(first, stop))

    plain = train_loop.train_step
    sleep_in_steps(seconds)
    try:
        run_rank(inputs, stream, device=torch.device("cpu"))
    finally:
        train_loop.train_step = plain


def write_set(folder: Path) -> None:
    """Write a packed set of 256 faces and their landmarks."""
    faces, packed = str(folder / "faces"), str(folder / "packed")
    datasets.write_faces(faces, num_identities=32, images_per_identity=8, seed=0)
    table = pq.read_table(write_landmarks(faces, "196", images_per_identity=8, seed=0))
    execute("pack", [f"{faces}/train.rec", packed])
    # Packing shuffles: a record is found again by its bytes.
    opened = open_faces(packed)
    rows = opened.read(np.arange(opened.num_images))
    number_of = {zlib.crc32(image): number for number, image in enumerate(rows.images)}
    numbers = [number_of[checksum] for checksum in table["image_crc32"].to_pylist()]
    names = [filesystem.file_name(opened.shard_uris[shard]) for shard in rows.shard[numbers].tolist()]
    for name, column in (("shard", pa.array(names)), ("key", pa.array(rows.key[numbers]))):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "landmarks.parquet")
    execute("cache-landmarks", ["--from", f"{folder}/landmarks.parquet", packed, "--out", f"{folder}/landmarks"])


def measure(folder: Path, name: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Run one way; return seconds of each ten steps, and those of them that it waited for its batches."""
    settings = [f"run.name={name}", f"run.storage={folder}/runs", f"duration={options.steps} steps"]
    settings += [f"data.path={folder}/packed", "data.chunk_records=256", f"batch_size={options.batch}"]
    settings += ["landmarks.source=cached", "landmarks.weights=null", f"landmarks.cache={folder}/landmarks"]
    settings += [f"checkpoints.every={options.steps} steps", "optim.warmup=1 steps", "monitoring.wait_share=0"]
    settings += [f"log.every_steps={STEPS_PER_LINE}"]
    settings += [f"compute.workers={int(name == 'Ray')}", f"ingest.actors_per_worker={options.actors}"]
    settings += [f"ingest.blocks_per_execution={options.blocks_per_execution}"]
    inputs = prepare_run(load(PretrainConfig, str(CONFIG), settings))
    (run_ray if name == "Ray" else run_bare)(inputs, options.step_sleep)
    lines = read_metrics(filesystem.join(inputs.folder().uri, "metrics.jsonl"))
    assert len(lines) == options.steps // STEPS_PER_LINE, f"{name}: {len(lines)} lines of {options.steps} steps"
    seconds = [STEPS_PER_LINE * options.batch / line["images_per_s"] for line in lines]
    return seconds, [s * line["wait_share"] for s, line in zip(seconds, lines, strict=True)]


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Run both ways and print their times from the eleventh step on, end to end."""
    if options.steps % STEPS_PER_LINE or options.steps < 2 * STEPS_PER_LINE:
        sys.exit(f"--steps {options.steps}: with --step-sleep a multiple of {STEPS_PER_LINE}, at least two of them")
    write_set(folder)
    base = 0.0
    titles = ("steps 11 to end, s", "to bare", "waited, s", "longest ten, s", "first batch, s")
    print(f"{'':8}" + "".join(f"{title:>20}" for title in titles))
    for name in ("bare", "Ray"):
        seconds, waits = measure(folder, name, options)
        whole = sum(seconds[1:])
        base = base or whole
        cells = (f"{whole:.2f}", f"{whole / base:.3f} ×", f"{sum(waits[1:]):.2f}", f"{max(seconds[1:]):.2f}")
        print(f"{name:8}" + "".join(f"{cell:>20}" for cell in (*cells, f"{waits[0]:.1f}")), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
