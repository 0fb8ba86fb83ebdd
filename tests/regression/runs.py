"""The runs that a refactoring must not change: what they are called, their settings, their files.

Everything is tiny: the smallest model, 12 steps, generated faces. A job runs by the main function
of its file under jobs/ with the arguments of a command line; on Ray, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.training.input_pipeline import local_stream
from lafs_ray.training.prepare import check_run

ROOT = Path(__file__).parents[2]

# Names that a renaming touches: keys of the configuration, of files, of what is reported.
TIMES = ("images_per_s", "wait_share", "read_ms", "preprocess_ms")
SCHEDULES = ("step", "epoch", "lr", "weight_decay")
METRICS, CHECKPOINTS, LOSS = "metrics.jsonl", "checkpoints/step-*.pt", "loss"
REPORTS, REPORT_LIST, REPORT_VALUE = "trial.json", "reports", "value"
STEPS, SAVE_EVERY = 12, 4
FACES = ["--identities", "12", "--images", "6", "--seed", "0"]
PAIRS = ["--pairs", "20", "--pair-identities", "5"]

_COMMON = [
    "data.path={folder}/faces/train.rec",
    "run.storage={storage}",
    "run.name={name}",
    "model.size=tiny",
    "model.num_landmarks=49",
    "model.patch_size=16",
    "model.landmark_cnn_width=0.25",
    "batch_size=8",
    f"duration={STEPS} steps",
    "optim.warmup=2 steps",
    f"checkpoints.every={SAVE_EVERY} steps",
    "checkpoints.keep=3",
    "log.every_steps=1",
    "compute.workers=0",
    "compute.device=cpu",
    "compute.precision=float32",
]
_PRETRAIN = [
    "landmarks.local_tokens=9",
    "views.num_local=2",
    "head.num_prototypes=64",
    "head.hidden_dim=32",
    "head.bottleneck_dim=16",
]
_OF_STAGE_ONE = "landmarks.weights={folder}/stage_one"
_TWO_WORKERS = ["compute.workers=2", "ingest.actors_per_worker=1"]
# A grid: which values a sampler draws is no part of what must not change.
_SWEEP_SPACE = {"optim.lr": {"choice": [1e-3, 3e-4]}}


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        job: its file under jobs/.
        config: its file under configs/.
        settings: what differs from that file.
        needs: runs that it starts from.
    """

    job: str
    config: str
    settings: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _pretrain(source: str, *settings: str) -> Run:
    common = (*_COMMON, *_PRETRAIN, f"landmarks.source={source}", *settings)
    return Run("pretrain", "pretrain/debug", common, ("stage_one",) * (source != "grid"))


RUNS = {
    # A start away from the grid and fast steps: otherwise all faces would have the same landmarks.
    "stage_one": Run(
        "finetune", "finetune/part_fvit", (*_COMMON, "accumulation=1", "optim.lr=3e-3", "model.landmark_start=random")
    ),
    "per_view": _pretrain("per_view", _OF_STAGE_ONE),
    "per_image": _pretrain("per_image", _OF_STAGE_ONE),
    "cached": _pretrain("cached", _OF_STAGE_ONE),
    "grid": _pretrain("grid", "landmarks.weights=null", "dino.centering=sinkhorn"),
    "few_shot": Run(
        "finetune",
        "finetune/few_shot",
        (
            *_COMMON,
            "data.subset.images_per_identity=2",
            "start.transformer={folder}/per_view",
            "accumulation=2",
            "optim.lr=1e-3",
            "regularizer.strength=1.0",
            "augmentation.rand_augment=2",
            "augmentation.erasing=0.5",
            "mixup.probability=0.5",
            "margin.sample_rate=0.5",
        ),
        ("stage_one", "per_view"),
    ),
    "two_workers": _pretrain("per_view", _OF_STAGE_ONE, *_TWO_WORKERS),
}
SOURCES = ("per_view", "per_image", "cached", "grid")
IN_THIS_PROCESS = ("stage_one", *SOURCES, "few_shot")
CONTINUED = ("per_view", "few_shot")


def call(job: str, *arguments: str) -> None:
    """Run a job's main function in this process with one thread; what it prints is dropped."""
    torch.set_num_threads(1)
    main = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))["main"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main(arguments)


def start(job: str, *arguments: str) -> None:
    """Run a job in a process of its own, as those on Ray do.

    Raises:
        RuntimeError: it failed; the message holds what it printed.
    """
    environment = {"RAY_worker_niceness": "0", **os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, f"jobs/{job}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def faces(folder: Path) -> Path:
    """The folder of the generated faces, made if it is not there."""
    made = folder / "faces"
    if not made.exists():
        call("make_faces", str(made), *FACES, *PAIRS)
    return made


def train(folder: Path, name: str) -> Path:
    """The folder of a run, trained if it is not there, after those that it starts from."""
    run = RUNS[name]
    if (folder / name).exists():
        return folder / name
    data = faces(folder)
    for other in run.needs:
        train(folder, other)
    if name == "cached":
        call("cache_landmarks", str(folder / "stage_one"), str(data / "train.rec"))
    execute = start if name == "two_workers" else call
    execute(run.job, *arguments(folder, name, folder))
    return folder / name


def arguments(folder: Path, name: str, storage: Path) -> list[str]:
    """The command line of a run, which lies in `storage`."""
    run, where = RUNS[name], {"folder": folder, "storage": storage, "name": name}
    settings = [setting.format(**where) for setting in run.settings]
    return [str(ROOT / "configs" / f"{run.config}.yaml"), *settings]


def train_with_a_break(folder: Path, name: str) -> Path:
    """The folder of a copy of a run, cut back to what a kill in step 7 leaves, and continued.

    That is the checkpoint of step 4 and the reports of steps 1 to 6.
    """
    storage = folder / "continued"
    copy = storage / name
    if copy.exists():
        return copy
    shutil.copytree(train(folder, name), copy)
    for checkpoint in sorted(copy.glob(CHECKPOINTS))[1:]:
        checkpoint.unlink()
    lines = (copy / METRICS).read_text().splitlines(keepends=True)
    (copy / METRICS).write_text("".join(lines[: SAVE_EVERY + 2]))
    call(RUNS[name].job, *arguments(folder, name, storage))
    return copy


def sweep(folder: Path) -> Path:
    """The folder of a sweep of two trials, run if it is not there.

    No trial is stopped early: which one ASHA stops depends on who reports first.
    """
    made = folder / "sweeps" / "sweep"
    if made.exists():
        return made
    train(folder, "stage_one")
    own = ("run.", "data.path", "duration", "optim.lr", "checkpoints.", "compute.workers")
    where = {"folder": folder, "storage": folder, "name": "trial"}
    pairs = [one.format(**where).split("=", 1) for one in RUNS["stage_one"].settings]
    settings = {key: yaml.safe_load(value) for key, value in pairs if not key.startswith(own)}
    tree = {
        "name": "sweep",
        "storage": str(folder / "sweeps"),
        "task": "finetune",
        "base": str(ROOT / "configs/finetune/part_fvit.yaml"),
        "settings": settings
        | {
            "data.path": f"{folder}/faces/train.rec",
            "duration": "8 steps",
            "compute.workers": 0,
            "start.landmarks": f"{folder}/stage_one",
            "regularizer.strength": 1.0,
        },
        "space": _SWEEP_SPACE,
        "objective": {"pairs": f"{folder}/faces/pairs.bin", "reports": 2},
        "budget": {"trials": 2},
        "scheduler": {"kind": "none"},
        "searcher": {"kind": "grid"},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    start("sweep", str(file))
    return made


def sweep_reports(folder: Path) -> list[list[float]]:
    """The figures of a sweep's trials, one list for each trial."""
    files = sorted(folder.rglob(REPORTS))
    return [[one[REPORT_VALUE] for one in json.loads(f.read_text())[REPORT_LIST]] for f in files]


def epoch_columns(folder: Path, source: str) -> Iterator[dict[str, Any]]:
    """The columns that each step of the first epoch trains on, for a source of landmarks."""
    torch.set_num_threads(1)
    file, *settings = arguments(folder, source, folder)
    inputs = check_run(load(PretrainConfig, file, settings))
    stop = inputs.sampler.steps_per_epoch
    for batch in local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, stop):
        yield batch.columns
