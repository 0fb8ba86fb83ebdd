"""Runs of `benchmarks.real_faces`: landmark CNN, pretraining, finetuning and whitening, each made once and kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.real_face_methods import (
    DISTILLED,
    FINETUNED_SOURCE,
    FOR_LONGER,
    GRID_PAIRED,
    LANDMARKS,
    LONGER,
    METHODS,
    PAIRED,
    SHALLOW,
    TO_SHALLOW,
    Arm,
    Tree,
)
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import apply_overrides, read_yaml, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.whitening import WhiteningOptions, whitened_network
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import run_local

ROOT = Path(__file__).parents[1]
PRESET = ROOT / "configs" / "pretrain" / "lafs_small_data.yaml"
DISTILLATION = ROOT / "configs" / "pretrain" / "distillation.yaml"
NEIGHBORS = ROOT / "configs" / "pretrain" / "lafs_neighbors.yaml"
# The landmark CNN. MediaPipe finds no points in three faces of a thousand; they get the mean.
NUM_POINTS, MAX_MISSING, LANDMARK_DURATION = 49, 1000, "8 epochs"
FINETUNE: Tree = {
    "batch_size": 32,
    "margin": {"scale": 16.0, "margin": 0.1},
    "optim": {"lr": 3e-3, "warmup": "0.25 run", "weight_decay": 0.05},
    "checkpoints": {"every": "1 run", "keep": 1},
}
# All labels of the set: ten times the steps, some three passes over 21,100 faces.
ALL, ALL_LONGER = "all", 10
# The whitening fits this transformer: trained as well, it fell to 0.59 where the map alone rose from 0.875 to 0.882.
FINETUNE_WHITENED: Tree = {
    "optim.lr": 5e-4,
    "optim.warmup": "0 steps",
    "freeze.landmarks": "1 run",
    "freeze.transformer": "1 run",
}
COMPONENTS, NEIGHBOR_COMPONENTS = 200, 350
_CLASS_COMPONENTS = 100


@dataclass(frozen=True)
class Plan:
    """Folders and numbers of the benchmark."""

    work: Path
    faces: str
    labeled: str
    pairs: Path
    files: tuple[str, ...]
    steps: int | None
    components: tuple[int, int]
    landmarks: str | None = None
    finetuning_steps: int = 200
    precision: str = "float32"

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.work / "runs" / name


def landmark_run(plan: Plan, mediapipe: str) -> str:
    """Find MediaPipe's points of the faces, and train a landmark CNN on them; return its run's folder."""
    points, cache = str(plan.work / "points"), str(plan.work / "landmarks")
    if not (plan.work / "landmarks").exists():
        found = [mediapipe, "jobs/mediapipe_landmarks.py", plan.faces, points, "--count", str(NUM_POINTS)]
        imported = [sys.executable, "jobs/cache_landmarks.py", "--from", points, plan.faces, "--out", cache]
        for command in (found, [*imported, "--max-missing", str(MAX_MISSING)]):
            subprocess.run(command, cwd=ROOT, check=True)
    settings: Tree = {"run.name": "landmarks", "run.storage": str(plan.work / "runs"), "checkpoints.keep": 1}
    settings |= {"data.path": plan.faces, "landmarks.cache": cache, "model.num_landmarks": NUM_POINTS}
    settings |= {"duration": LANDMARK_DURATION if plan.steps is None else f"{plan.steps} steps"}
    tree = apply_overrides(read_yaml(str(ROOT / "configs" / "landmarks" / "cpu.yaml")), settings)
    print(f"landmarks: {train(plan, 'landmarks', resolve(LandmarkConfig, tree, 'landmarks')):.0f} s of training")
    return str(plan.run("landmarks"))


def add_landmarks(plan: Plan) -> None:
    """Find the landmarks of all faces once, and add the methods that have them, with the CNN that their run says."""
    run, cache = plan.landmarks, str(plan.work / "found_landmarks")
    assert run is not None
    if not Path(cache).exists():
        command = [sys.executable, "jobs/cache_landmarks.py", run, plan.faces, "--out", cache]
        subprocess.run(command, cwd=ROOT, check=True)
    model = json.loads(filesystem.read_bytes(filesystem.join(run, "config.json")))["config"]["model"]
    keys = ("num_landmarks", "landmark_cnn", "landmark_cnn_width", "landmark_scaling")
    source: Tree = {"landmarks.source": "cached", "landmarks.weights": run, "landmarks.cache": cache}
    METHODS[LANDMARKS] = {**{f"model.{key}": model[key] for key in keys}, **source}
    METHODS[LONGER] = {**METHODS[LANDMARKS], **FOR_LONGER}
    METHODS[PAIRED] = METHODS[DISTILLED] = METHODS[LANDMARKS]
    METHODS[SHALLOW] = {**METHODS[LANDMARKS], **TO_SHALLOW}


def train(plan: Plan, name: str, config: PretrainConfig | FinetuneConfig | LandmarkConfig) -> float:
    """Train to the end, or continue; return seconds of processor time of the calls that trained, kept in WORK.

    Raises:
        UserError: WORK has a run of this name with other settings, or another process is training it.
    """
    path, started = plan.work / "seconds" / f"{name}.json", time.process_time()
    inputs = prepare_run(config)
    if not path.exists():
        with inputs.folder().lock():
            run_local(inputs)
        with filesystem.atomic_write(str(path)) as file:
            file.write(json.dumps(time.process_time() - started).encode())
    seconds: float = json.loads(path.read_text())
    return seconds


def pretrain(plan: Plan, method: str, seed: int) -> str:
    """Pretrain without labels; return the run's folder."""
    name = f"{method.replace(' ', '_')}-{seed}"
    settings = {
        "compute.precision": plan.precision,
        **METHODS[method],
        "run.name": name,
        "run.storage": str(plan.work / "runs"),
        "run.seed": seed,
    }
    settings |= {"data.path": plan.faces, "checkpoints.keep": 1}
    preset = PRESET
    if method in (DISTILLED, SHALLOW):
        preset = DISTILLATION
        start = pretrain(plan, LANDMARKS, seed)
        settings["distillation.teacher"] = whitened_file(plan, start, "all", neighbors=True, trained=False)
    if method in (PAIRED, GRID_PAIRED):
        preset = NEIGHBORS
        settings["neighbors.pairs"] = neighbors_file(plan, pretrain(plan, LANDMARKS, seed))
    if plan.steps is not None:
        settings |= {"duration": f"{plan.steps} steps", "optim.warmup": f"{plan.steps // 10} steps"}
    config = resolve(PretrainConfig, apply_overrides(read_yaml(str(preset)), settings), name)
    print(f"{name}: {train(plan, name, config):.0f} s of training", flush=True)
    return str(plan.run(name))


def neighbors_file(plan: Plan, start: str) -> str:
    """Mine neighbors by a run's network, untrained and whitened; return the file, which is kept in WORK."""
    file = plan.work / "neighbors" / f"{Path(start).name}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        network = whitened_file(plan, start, "all", neighbors=True, trained=False)
        command = [sys.executable, "jobs/mine_neighbors.py", network, plan.faces, str(file)]
        subprocess.run(command, cwd=ROOT, check=True)
    return str(file)


def start_of(plan: Plan, arm: Arm, seed: int) -> str | None:
    """Make what an arm starts from, with a pretraining seed; return its run or weights file, None if there is none."""
    if not arm.has_transformer:
        return None
    assert arm.method is not None
    start = pretrain(plan, arm.method, seed)
    if not arm.is_whitened:
        return start
    return whitened_file(plan, start, "all", neighbors=True, trained=arm.start == "whitened")


def finetune(plan: Plan, arm: Arm, shot: str, seed: int, pretraining_seed: int) -> str:
    """Train on k labeled images of each identity, or on `all`; return the run's folder."""
    name = f"few-{re.sub(r'[^A-Za-z0-9]+', '_', arm.name)}-k{shot}-{seed}"
    base = read_yaml(str(PRESET))
    tree: Tree = {key: base[key] for key in ("model", "compute", "run")}
    settings = {**FINETUNE, "run.name": name, "run.storage": str(plan.work / "runs"), "run.seed": seed}
    settings |= {"data.path": plan.labeled, "landmarks.source": "template"}
    settings["duration"] = f"{plan.finetuning_steps * (ALL_LONGER if shot == ALL else 1)} steps"
    if shot != ALL:
        subset = {"images_per_identity": int(shot), "seed": seed, "short_identities": "take_all"}
        settings |= {f"data.subset.{key}": value for key, value in subset.items()}
    if arm.is_regularized:
        settings["regularizer.strength"] = 1.0
    if arm.method is not None:
        settings |= {key: value for key, value in METHODS[arm.method].items() if key.startswith("model.")}
        settings["landmarks.source"] = FINETUNED_SOURCE.get(arm.method, "template")
    if arm.start == "landmarks":
        settings["start.landmarks"] = plan.landmarks
    if arm.has_transformer:
        settings |= {"start.transformer": start_of(plan, arm, pretraining_seed), "optim.layer_decay": 0.58}
    else:
        settings["model.init_std"] = 1.0
    if arm.is_whitened:
        settings |= {"model.readout": "all", "model.whitened_dim": plan.components[1], **FINETUNE_WHITENED}
    train(plan, name, resolve(FinetuneConfig, apply_overrides(tree, settings), name))
    return str(plan.run(name))


def whitening(plan: Plan, readout: Any = "all", *, neighbors: bool = False) -> WhiteningOptions:
    """Return how embeddings are whitened; the class token has 128 numbers, so fewer components."""
    components = plan.components[1] if neighbors else plan.components[0]
    components = min(components, _CLASS_COMPONENTS) if readout != "all" else components
    return WhiteningOptions(plan.faces, readout, components, neighbors)


def whitened_file(plan: Plan, path: str, readout: str, *, neighbors: bool = False, trained: bool = True) -> str:
    """Whiten the embedding of a run's network; return the weights file, which is kept in WORK."""
    options = whitening(plan, readout, neighbors=neighbors)
    name = f"{Path(path).name}-{trained:d}-{readout}-{neighbors:d}-{options.components}"
    file = plan.work / "whitened" / f"{name}.safetensors"
    if not file.exists():
        weights = load_for_inference(path)
        if not trained:
            untrained = weights.embedder(trained=False).transformer.state_dict()
            weights = replace(weights, state=replace(weights.state, backbone={**weights.state.backbone, **untrained}))
        fitted = whitened_network(weights, options).whitening
        assert fitted is not None
        write_weights(str(file), weights.read_by(options.readout).whitened(fitted).without_heads())
    return str(file)
