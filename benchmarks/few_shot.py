"""Few-shot accuracy: from scratch, DINO-face, LAFS, and LAFS with the landmark regularizer.

    python -m benchmarks.few_shot WORK                       synthetic faces
    python -m benchmarks.few_shot WORK --att FOLDER          AT&T faces (train.rec, att_10id.bin)

Identities of stage 1, pretraining, finetuning and evaluation are disjoint (AT&T: pretraining and finetuning share
labels 0-29, landmarks come from synthetic faces). Every run is one process of one thread in debug mode; results are
kept in WORK/results, so an interrupted run continues. The metric is 10-fold pair accuracy on identities not trained on,
mean ± std over pretraining × finetuning seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.few_shot_faces import att_faces, generated_faces
from benchmarks.process_pool import process_pool, results
from benchmarks.views import cpu_name
from lafs_ray.cli.main import run
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import apply_overrides, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.protocols import evaluate_pairs, local_embedding
from lafs_ray.synthetic import datasets
from lafs_ray.training.checkpoint.inference import load_embedder
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import run_local

Tree = dict[str, Any]

ON_GRID = {"model.num_landmarks": 49, "landmarks.source": "grid"}
WITHOUT = "from scratch"
START = "landmarks only"
RAW, UNTRAINED, FROZEN = "raw pixels", "untrained", "frozen"

COMMON: Tree = {
    "model": {
        "size": "tiny",
        "num_landmarks": 25,
        "patch_size": 16,
        "landmark_cnn_width": 0.25,
        "dropout": 0.0,
        "drop_path": 0.0,
    },
    "batch_size": 64,
    "checkpoints": {"every": "1 run", "keep": 1},
    "log": {"every_steps": 50},
    "compute": {"workers": 0, "device": "cpu", "precision": "float32"},
}
MARGIN = {"scale": 16.0, "margin": 0.1}
STAGE_1 = {
    "model.init_std": 1.0,
    "duration": "1200 steps",
    "margin": MARGIN,
    "optim": {
        "lr": 3e-3,
        "landmark_lr_scale": 0.3,
        "warmup": "60 steps",
        "weight_decay": 0.05,
        "landmark_decay_scale": 1.0,
    },
}
PRETRAIN = {
    "views": {"num_local": 4, "crop_area": [0.7, 1.0], "local_crop_area": [0.7, 1.0], "crop_aspect": [0.9, 1.11]},
    "head": {"num_prototypes": 1024, "hidden_dim": 256, "bottleneck_dim": 64},
    "dino": {
        "centering": "sinkhorn",
        "teacher_momentum": 0.99,
        "teacher_temp": {"start": 0.02, "end": 0.02, "warmup_epochs": 0},
    },
    "optim": {"lr": 8e-3, "warmup": "0.0833 run", "weight_decay_end": 0.1},
}
METHODS: dict[str, Tree] = {
    "LAFS": {"landmarks.source": "per_image", "landmarks.local_tokens": 8, "landmarks.noise_px": 2},
    "DINO-face": {**ON_GRID, "landmarks.local_tokens": 9},
}
FINETUNE = {
    "batch_size": 24,
    "margin": MARGIN,
    "optim": {"lr": 3e-3, "warmup": "0.25 run", "landmark_lr_scale": 0.3, "weight_decay": 0.05},
}
# Columns of the table: settings, and the pretraining method that they start from.
ARMS: dict[str, tuple[Tree, str | None]] = {
    WITHOUT: ({"model.init_std": 1.0}, None),
    START: ({"model.init_std": 1.0}, None),
    "DINO-face": ({**ON_GRID, "optim.layer_decay": 0.58}, "DINO-face"),
    "LAFS": ({"optim.layer_decay": 0.58}, "LAFS"),
    "LAFS + regularizer": ({"optim.layer_decay": 0.58, "regularizer.strength": 1.0}, "LAFS"),
}


@dataclass(frozen=True)
class Plan:
    """Folders, sets and numbers of runs of the benchmark."""

    work: Path
    pretraining_faces: str
    labeled_faces: str
    pairs: str
    pretraining_steps: int
    finetuning_steps: int
    pretraining_seeds: int
    finetuning_seeds: int
    stage_1: str
    shots: tuple[int, ...]

    @property
    def storage(self) -> str:
        """Folder of the runs."""
        return str(self.work / "runs")

    def pretrained(self, method: str, seed: int) -> str:
        """Folder of a pretraining run."""
        return str(self.work / "runs" / f"{method}-{seed}")


@dataclass(frozen=True)
class Shot:
    """One finetuning run."""

    arm: str
    num_images: int
    pretraining_seed: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run and of its result."""
        arm = self.arm.replace(" ", "_").replace("+", "and")
        return f"{arm}-k{self.num_images}-p{self.pretraining_seed}-s{self.seed}"


def tree(base: Tree, settings: Tree, *, name: str, storage: str, faces: str, seed: int) -> Tree:
    """Return the settings of a run as a tree."""
    run = {"run.name": name, "run.storage": storage, "run.seed": seed, "data.path": faces}
    return apply_overrides(apply_overrides(base, settings), run)


def train(config: FinetuneConfig | PretrainConfig) -> None:
    """Train to the end, or continue an interrupted run."""
    run_local(prepare_run(config))


def accuracies(path: str, pairs: str, *, trained: bool = True) -> dict[str, float]:
    """Return the plain and the centered pair accuracy of a run's network."""
    network = local_embedding(load_embedder(path, trained=trained))
    plain, centered = evaluate_pairs(open_pairs(pairs), {"": network}).rows
    return {"plain": plain.metrics["accuracy"] or 0.0, "centered": centered.metrics["accuracy"] or 0.0}


def keep(plan: Plan, name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return a result from WORK/results; it is computed first if it is missing."""
    path = plan.work / "results" / f"{name}.json"
    if not path.exists():
        started = time.monotonic()
        result = make()
        with filesystem.atomic_write(str(path)) as file:
            file.write(json.dumps(result).encode())
        shown = "  ".join(f"{key} {value:.3f}" for key, value in result.items())
        print(f"{name:<36} {shown}  {time.monotonic() - started:.0f} s", flush=True)
    content: dict[str, float] = json.loads(path.read_text())
    return content


def stage_1(plan: Plan) -> None:
    """Train the landmark CNN on labeled identities of its own."""
    faces = str(plan.work / "stage1_faces" / "train.rec")
    where = {"name": "stage1", "storage": plan.storage, "faces": faces, "seed": 0}
    train(resolve(FinetuneConfig, tree(COMMON, STAGE_1, **where), "stage 1"))


def pretrain(plan: Plan, method: str, seed: int) -> None:
    """Pretrain, and evaluate the frozen network."""

    def make() -> dict[str, float]:
        settings = {**PRETRAIN, **METHODS[method], "duration": f"{plan.pretraining_steps} steps"}
        if METHODS[method]["landmarks.source"] != "grid":
            settings["landmarks.weights"] = plan.stage_1
        where = {"name": f"{method}-{seed}", "storage": plan.storage, "seed": seed}
        config = tree(COMMON, settings, faces=plan.pretraining_faces, **where)
        train(resolve(PretrainConfig, config, method))
        return accuracies(plan.pretrained(method, seed), plan.pairs)

    keep(plan, f"{FROZEN}-{method}-{seed}", make)


def finetune(plan: Plan, shot: Shot) -> None:
    """Finetune on k images per identity, evaluate the network, and delete its run."""

    def make() -> dict[str, float]:
        settings, method = ARMS[shot.arm]
        settings = {**FINETUNE, **settings, "duration": f"{plan.finetuning_steps} steps"}
        settings["data.subset"] = {"images_per_identity": shot.num_images, "seed": shot.seed}
        if method is not None:
            settings["start.transformer"] = plan.pretrained(method, shot.pretraining_seed)
        if shot.arm == START:
            settings["start.landmarks"] = plan.stage_1
        where = {"name": shot.name, "storage": plan.storage, "seed": shot.seed}
        config = tree(COMMON, settings, faces=plan.labeled_faces, **where)
        train(resolve(FinetuneConfig, config, shot.name))
        run = Path(plan.storage, shot.name)
        result = accuracies(str(run), plan.pairs)
        shutil.rmtree(run)
        return result

    keep(plan, shot.name, make)


def shots(plan: Plan) -> list[Shot]:
    """Return all finetuning runs; arms without pretraining have one pretraining seed."""
    return [
        Shot(arm, k, pretraining_seed, seed)
        for seed in range(plan.finetuning_seeds)
        for k in plan.shots
        for arm, (_, method) in ARMS.items()
        for pretraining_seed in range(plan.pretraining_seeds if method else 1)
    ]


def table(plan: Plan) -> str:
    """Return the results as Markdown."""

    def cell(results: Iterable[dict[str, float]], key: str) -> str:
        values = [result[key] for result in results]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    def kept(name: str) -> dict[str, float]:
        return keep(plan, name, dict)

    lines = ["| images per identity | " + " | ".join(ARMS) + " |", "|---|" + "---|" * len(ARMS)]
    for k in plan.shots:
        of_k = [shot for shot in shots(plan) if shot.num_images == k]
        cells = [cell([kept(s.name) for s in of_k if s.arm == arm], "plain") for arm in ARMS]
        lines.append(f"| {k} | " + " | ".join(cells) + " |")
    lines += ["", "| frozen | plain | centered |", "|---|---|---|"]
    seeds = range(plan.pretraining_seeds)
    frozen = {RAW: [RAW], UNTRAINED: [UNTRAINED]}
    frozen |= {method: [f"{FROZEN}-{method}-{seed}" for seed in seeds] for method in METHODS}
    for name, files in frozen.items():
        results = [kept(file) for file in files]
        lines.append(f"| {name} | {cell(results, 'plain')} | {cell(results, 'centered')} |")
    return "\n".join(lines)


def baselines(plan: Plan) -> None:
    """Evaluate raw pixels, and an untrained network on stage-1 landmarks."""

    def raw() -> dict[str, float]:
        rows = evaluate_pairs(open_pairs(plan.pairs), {}, raw_pixels=True).rows
        return dict(zip(("plain", "centered"), (r.metrics["accuracy"] or 0.0 for r in rows), strict=True))

    keep(plan, RAW, raw)
    keep(plan, UNTRAINED, lambda: accuracies(plan.pretrained("LAFS", 0), plan.pairs, trained=False))


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("work", type=Path)
    parser.add_argument("--att", metavar="FOLDER", help="AT&T faces in place of generated ones")
    parser.add_argument("--stage-1", help="a stage-1 run made earlier, or `untrained`")
    numbers = {"pretraining-steps": 700, "finetuning-steps": 80}
    numbers |= {"pretraining-seeds": 2, "finetuning-seeds": 5, "processes": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 10], help="images k")
    options = parser.parse_args(arguments)
    started, work = time.monotonic(), options.work.absolute()
    (work / "results").mkdir(parents=True, exist_ok=True)
    sets = att_faces(work, options.att) if options.att else generated_faces(work)
    plan = Plan(
        work,
        **sets,
        pretraining_steps=options.pretraining_steps,
        finetuning_steps=options.finetuning_steps,
        pretraining_seeds=options.pretraining_seeds,
        finetuning_seeds=options.finetuning_seeds,
        stage_1=options.stage_1 or str(work / "runs" / "stage1"),
        shots=tuple(options.shots),
    )
    if not options.stage_1:
        size = {"num_identities": 200, "images_per_identity": 20, "seed": 11}
        datasets.write_faces(str(work / "stage1_faces"), **size, workers=options.processes)
    both = itertools.product(range(plan.pretraining_seeds), METHODS)
    with process_pool(options.processes, torch.set_num_threads, 1) as pool:
        if not options.stage_1:
            results([pool.submit(stage_1, plan)])
        results([pool.submit(pretrain, plan, method, seed) for seed, method in both])
        results([pool.submit(baselines, plan), *(pool.submit(finetune, plan, shot) for shot in shots(plan))])
    print(f"\n{table(plan)}\n\n{cpu_name()}, Python {sys.version.split()[0]}, ", end="")
    print(f"{plan.pretraining_steps} and {plan.finetuning_steps} steps, ", end="")
    print(f"{options.processes} processes, {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    raise SystemExit(run(main))
