"""Comparison of landmark sources: pretraining with per_view, per_image and cached.

    python -m benchmarks.landmark_sources WORK --stage-1 RUN --steps 600 --seeds 2

RUN is a stage-1 run of the tiny model (few_shot.py makes one: WORK/runs/stage1). Faces, model and settings are those of
few_shot.py's LAFS; everything but the source is the same, including the order of faces, crops and noise, so that losses
compare step by step. WORK is kept: existing results are not computed again, an interrupted run continues. One process
of one thread at a time.

Prints for each source the loss (mean of the last tenth of the steps) and of its frozen teacher the 10-fold pair
accuracy, plain and centered, and the 1-NN identity accuracy over faces of identities not trained on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import few_shot
from benchmarks.views import cpu_name
from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run
from lafs_ray.config.loader import resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.protocols import evaluate_identities, evaluate_pairs, local_embedding
from lafs_ray.synthetic import datasets
from lafs_ray.training.checkpoint.inference import load_embedder
from lafs_ray.training.checkpoint.metrics_log import read_metrics

SOURCES = ("per_view", "per_image", "cached")
METRICS = ("loss", "plain", "centered", "nn_plain", "nn_centered")


def result(work: Path, source: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the metrics of one run from WORK/results; they are computed first if missing."""
    path = work / "results" / f"{source}-{seed}-{options.steps}.json"
    if not path.exists():
        started = time.monotonic()
        metrics = make(work, source, seed, options)
        with filesystem.atomic_write(str(path)) as file:
            file.write(json.dumps(metrics).encode())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        print(f"{path.stem:<24} {shown}  {time.monotonic() - started:.0f} s", flush=True)
    content: dict[str, float] = json.loads(path.read_text())
    return content


def make(work: Path, source: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Pretrain with one source and evaluate the teacher."""
    name = f"{source}-{seed}-{options.steps}"
    settings: few_shot.Tree = {
        **few_shot.PRETRAIN,
        **few_shot.METHODS["LAFS"],
        "landmarks.source": source,
        "landmarks.weights": options.stage_1,
        "duration": f"{options.steps} steps",
        "log.every_steps": max(options.steps // 10, 1),
        "checkpoints.every": f"{max(options.steps // 5, 1)} steps",
    }
    where: dict[str, Any] = {"name": name, "storage": str(work / "runs"), "seed": seed}
    config = few_shot.tree(few_shot.COMMON, settings, faces=options.faces, **where)
    few_shot.train(resolve(PretrainConfig, config, name))
    run = work / "runs" / name
    network = {"": local_embedding(load_embedder(str(run)))}
    pairs = evaluate_pairs(open_pairs(options.pairs), network).rows
    nearest = evaluate_identities(open_labeled(options.neighbors, "rgb"), network, ks=(1,)).rows
    line = read_metrics(str(run / "metrics.jsonl"))[-1]
    found = [row.metrics["accuracy"] for row in pairs] + [row.metrics["1-NN"] for row in nearest]
    return dict(zip(METRICS, (line["loss"], *(value or 0.0 for value in found)), strict=True))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return the results as Markdown, mean ± standard deviation over the seeds."""
    lines = ["| landmarks.source | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for source, runs in results.items():
        cells = []
        for name in METRICS:
            values = [metrics[name] for metrics in runs]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| `{source}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stage-1", required=True, help="a stage-1 run of few_shot.py's model")
    parser.add_argument("--faces", help="a set to pretrain on (default: few_shot.py's, synthetic)")
    parser.add_argument("--pairs", help="pairs to evaluate on (default: few_shot.py's, synthetic)")
    parser.add_argument("--steps", type=int, default=600, help="of each run (default 600)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each source (default 2)")
    parser.add_argument("--identities", type=int, default=100, help="for 1-NN, 5 faces each (100)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started, work = time.monotonic(), options.work.absolute()
    (work / "results").mkdir(parents=True, exist_ok=True)
    if options.faces is None or options.pairs is None:
        sets = few_shot.generated_faces(work)
        options.faces = options.faces or sets["pretraining_faces"]
        options.pairs = options.pairs or sets["pairs"]
    # Other identities than those of the sets above, which have the seeds 0, 11 and 12.
    labeled: dict[str, Any] = {"num_identities": options.identities, "images_per_identity": 5, "seed": 13}
    datasets.write_faces(str(work / "neighbors"), **labeled, workers=1)
    options.neighbors = str(work / "neighbors" / "train.rec")
    execute("cache-landmarks", [options.stage_1, options.faces])
    results: dict[str, list[dict[str, float]]] = {source: [] for source in SOURCES}
    for seed in range(options.seeds):
        for source in SOURCES:
            results[source].append(result(work, source, seed, options))
    print(f"\n{table(results)}\n\n{cpu_name()}, Python {sys.version.split()[0]}, ", end="")
    print(f"torch {torch.__version__}, {options.steps} steps, {options.seeds} seeds, ", end="")
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    raise SystemExit(run(main))
