"""What is learned on real faces: baselines, frozen networks and few labels, in one table.

    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER             LFW View 1
    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER --view2     View 2

Settings are chosen on View 1 (lfw_dev_train.bin and lfw_dev_test.bin in FOLDER); View 2 (lfw.bin) is for the end.
Networks are trained by configs/pretrain/lafs_small_data.yaml on SETS, whose labels are not read, and whitenings are
fitted on the same faces. With --landmarks RUN, a landmark CNN of `lafs train-landmarks`, there is also LAFS at its
landmarks in place of the template's; with --mediapipe .venv-mediapipe/bin/python (`make mediapipe-environment`) that
CNN is made first, from MediaPipe's points of SETS. Few labels are those of SET. Every run is one process of one thread;
runs and results are kept in WORK, so an interrupted call continues. Accuracy is that of ten folds, over both files of
View 1 in proportion to their pairs. Differences of two rows are over the same pairs, with the standard error of a
paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.views import cpu_name
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import apply_overrides, read_yaml, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.eval_sets import EvalFaces, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.embed import embed_faces, flip_sum
from lafs_ray.evaluation.verification import kfold_accuracy, pair_distances, raw_pixel_embeddings, roc_curve
from lafs_ray.evaluation.whitening import WhiteningOptions, embed_pixels, fit_pixels, whitened_network
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import run_local

Tree = dict[str, Any]
Embed = Callable[[EvalFaces], NDArray[np.floating[Any]]]
Correct = NDArray[np.bool_]

ROOT = Path(__file__).parents[1]
PRESET = ROOT / "configs" / "pretrain" / "lafs_small_data.yaml"
# The landmark CNN. MediaPipe finds no points in three faces of a thousand; they get the mean.
NUM_POINTS, MAX_MISSING, LANDMARK_DURATION = 49, 1000, "8 epochs"
GRID: Tree = {
    "model.num_landmarks": 49,
    "model.patch_size": 16,
    "landmarks.source": "grid",
    "landmarks.local_tokens": 16,
}
METHODS: dict[str, Tree] = {
    "LAFS": {},
    "LAFS on pixels": {"model.token_features": "pixels", "model.patch_size": 16},
    "DINO-face": {**GRID, "model.token_features": "pixels"},
    "DINO-face on orientations": GRID,
}
WITHOUT, LANDMARKS, LANDMARKS_ALONE = "from scratch", "LAFS at landmarks", "landmarks alone"
FINETUNE: Tree = {
    "batch_size": 32,
    "duration": "200 steps",
    "margin": {"scale": 16.0, "margin": 0.1},
    "optim": {"lr": 3e-3, "warmup": "0.25 run", "weight_decay": 0.05},
    "checkpoints": {"every": "1 run", "keep": 1},
    "data.subset.short_identities": "take_all",
}
FINETUNED_SOURCE = {LANDMARKS: "cnn", "DINO-face": "grid", "DINO-face on orientations": "grid"}
VIEW_1, VIEW_2 = ("lfw_dev_train.bin", "lfw_dev_test.bin"), ("lfw.bin",)
COMPONENTS, NEIGHBOR_COMPONENTS = 200, 350
_RESAMPLES = 10_000


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


def add_landmarks(run: str) -> None:
    """Add the method that has a landmark CNN, of the size that its run says."""
    model = json.loads(filesystem.read_bytes(filesystem.join(run, "config.json")))["config"]["model"]
    keys = ("num_landmarks", "landmark_cnn", "landmark_cnn_width", "landmark_scaling")
    source: Tree = {"landmarks.source": "per_view", "landmarks.weights": run, "landmarks.local_tokens": 16}
    METHODS[LANDMARKS] = {**{f"model.{key}": model[key] for key in keys}, **source}


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, accuracy, AUC, correctness of each pair, and seconds of processor time."""

    name: str
    accuracy: float
    auc: float
    correct: Correct
    seconds: float


def evaluate(plan: Plan, embed: Embed) -> tuple[float, float, Correct]:
    """Return accuracy, AUC and which pairs are decided correctly, over all pair files."""
    accuracies, areas, correct = [], [], []
    for file in plan.files:
        pairs = open_pairs(str(plan.pairs / file))
        distances = pair_distances(embed(pairs.faces))
        found = kfold_accuracy(distances, pairs.same)
        blocks = np.array_split(np.arange(len(distances)), len(found.thresholds))
        limits = np.concatenate([np.full(len(b), t) for b, t in zip(blocks, found.thresholds, strict=True)])
        correct.append((distances < limits) == pairs.same)
        accuracies.append(found.mean)
        areas.append(roc_curve(-distances, pairs.same).area)
    sizes = [len(part) for part in correct]
    accuracy, area = (float(np.average(values, weights=sizes)) for values in (accuracies, areas))
    return accuracy, area, np.concatenate(correct)


def keep(plan: Plan, name: str, make: Callable[[], Embed]) -> Row:
    """Return a row from WORK/results; it is computed first if it is missing."""
    view = "view2" if plan.files == VIEW_2 else "view1"
    path = plan.work / "results" / view / f"{name.replace(' ', '_').replace(':', '')}.json"
    if not path.exists():
        started = time.process_time()
        accuracy, auc, correct = evaluate(plan, make())
        seconds = time.process_time() - started
        content = {"accuracy": accuracy, "auc": auc, "seconds": seconds, "correct": correct.astype(int).tolist()}
        with filesystem.atomic_write(str(path)) as file:
            file.write(json.dumps(content).encode())
        print(f"{name:<48} {accuracy:.4f} / {auc:.4f}  {seconds:.0f} s", flush=True)
    stored = json.loads(path.read_text())
    correct = np.array(stored["correct"], dtype=np.bool_)
    return Row(name, stored["accuracy"], stored["auc"], correct, stored["seconds"])


def train(plan: Plan, name: str, config: PretrainConfig | FinetuneConfig | LandmarkConfig) -> float:
    """Train to the end, or continue; return seconds of processor time of the calls that trained, kept in WORK."""
    path, started = plan.work / "seconds" / f"{name}.json", time.process_time()
    if not path.exists():
        run_local(prepare_run(config))
        with filesystem.atomic_write(str(path)) as file:
            file.write(json.dumps(time.process_time() - started).encode())
    seconds: float = json.loads(path.read_text())
    return seconds


def pretrain(plan: Plan, method: str, seed: int) -> str:
    """Pretrain without labels; return the run's folder."""
    name = f"{method.replace(' ', '_')}-{seed}"
    settings = {**METHODS[method], "run.name": name, "run.storage": str(plan.work / "runs"), "run.seed": seed}
    settings |= {"data.path": plan.faces, "checkpoints.keep": 1}
    if plan.steps is not None:
        settings |= {"duration": f"{plan.steps} steps", "optim.warmup": f"{plan.steps // 10} steps"}
    config = resolve(PretrainConfig, apply_overrides(read_yaml(str(PRESET)), settings), name)
    print(f"{name}: {train(plan, name, config):.0f} s of training", flush=True)
    return str(plan.run(name))


def finetune(plan: Plan, arm: str, start: str | None, k: int, seed: int) -> str:
    """Train on k labeled images of each identity; return the run's folder."""
    name = f"few-{arm.replace(' ', '_')}-k{k}-{seed}"
    base = read_yaml(str(PRESET))
    tree: Tree = {key: base[key] for key in ("model", "compute", "run")}
    settings = {**FINETUNE, "run.name": name, "run.storage": str(plan.work / "runs"), "run.seed": seed}
    settings |= {"data.path": plan.labeled, "landmarks.source": "template"}
    settings |= {"data.subset.images_per_identity": k, "data.subset.seed": seed}
    method = LANDMARKS if arm == LANDMARKS_ALONE else arm
    if method != WITHOUT:
        settings |= {key: value for key, value in METHODS[method].items() if not key.startswith("landmarks.")}
        settings["landmarks.source"] = FINETUNED_SOURCE.get(method, "template")
    if arm == LANDMARKS_ALONE:
        settings["start.landmarks"] = plan.landmarks
    if start is None:
        settings["model.init_std"] = 1.0
    else:
        settings |= {"start.transformer": start, "optim.layer_decay": 0.58}
    train(plan, name, resolve(FinetuneConfig, apply_overrides(tree, settings), name))
    return str(plan.run(name))


def network(path: str, *, trained: bool = True) -> Embed:
    """Return the plain embedding of a run's network."""
    embedder = load_for_inference(path).embedder(trained=trained)
    return lambda faces: flip_sum(embed_faces(embedder, faces))


def whitened(plan: Plan, path: str, readout: str, *, neighbors: bool = False, trained: bool = True) -> Embed:
    """Return the whitened embedding of a run's network."""
    file = plan.work / "whitened" / f"{Path(path).name}-{trained:d}-{readout}-{neighbors:d}.safetensors"
    if not file.exists():
        weights = load_for_inference(path)
        if not trained:
            untrained = weights.embedder(trained=False).transformer.state_dict()
            weights = replace(weights, state=replace(weights.state, backbone={**weights.state.backbone, **untrained}))
        options = whitening(plan, readout, neighbors=neighbors)
        fitted = whitened_network(weights, options).whitening
        assert fitted is not None
        write_weights(str(file), weights.read_by(options.readout).whitened(fitted).without_heads())
    return network(str(file))


def whitening(plan: Plan, readout: Any = "all", *, neighbors: bool = False) -> WhiteningOptions:
    """Return how embeddings are whitened; the class token has 128 numbers, so fewer components."""
    components = plan.components[1] if neighbors else plan.components[0]
    components = min(components, 100) if readout != "all" else components
    return WhiteningOptions(plan.faces, readout, components, neighbors)


def pixels(plan: Plan, *, neighbors: bool) -> Embed:
    """Return whitened gray pixels."""
    fitted = fit_pixels(whitening(plan, neighbors=neighbors))
    return lambda faces: flip_sum(embed_pixels(fitted, faces))


def raw_pixels(faces: EvalFaces) -> NDArray[np.floating[Any]]:
    """Return raw pixels less their mean, in float32."""
    rows = (faces.read(start, min(start + 256, faces.num_images)) for start in range(0, faces.num_images, 256))
    return np.concatenate([raw_pixel_embeddings(part).astype(np.float32) for part in rows])


def frozen_rows(plan: Plan, methods: Sequence[str], seeds: int) -> list[Row]:
    """Return the rows of baselines and frozen networks."""
    rows = [keep(plan, "raw pixels", lambda: raw_pixels)]
    rows.append(keep(plan, "whitened pixels", lambda: pixels(plan, neighbors=False)))
    rows.append(keep(plan, "whitened pixels, neighbors", lambda: pixels(plan, neighbors=True)))
    for seed in range(seeds):
        for method in methods:
            path = pretrain(plan, method, seed)
            for kind, trained in (("untrained", False), ("frozen", True)):
                name, make = f"{method}, seed {seed}, {kind}", {"path": path, "trained": trained}
                rows.append(keep(plan, f"{name}: class", lambda make=make: network(**make)))
                for readout in ("class", "all"):
                    makes = {**make, "plan": plan, "readout": readout}
                    rows.append(keep(plan, f"{name}: {readout}, whitened", lambda makes=makes: whitened(**makes)))
                near = {**make, "plan": plan, "readout": "all", "neighbors": True}
                rows.append(keep(plan, f"{name}: all, neighbors", lambda near=near: whitened(**near)))
    return rows


def few_label_rows(
    plan: Plan, methods: Sequence[str], shots: Sequence[int], seeds: int, finetuning_seeds: int
) -> list[Row]:
    """Return the rows of networks that were trained on few labels."""
    rows = []
    for k in shots:
        alone = [] if plan.landmarks is None else [LANDMARKS_ALONE]
        for arm in (WITHOUT, *alone, *methods):
            for seed in range(finetuning_seeds):
                start = None if arm in (WITHOUT, LANDMARKS_ALONE) else pretrain(plan, arm, seed % seeds)
                name = f"{k} labels, {arm}, seed {seed}"
                chosen = (arm, start, k, seed)
                rows.append(keep(plan, name, lambda chosen=chosen: network(finetune(plan, *chosen))))
    return rows


def difference(one: Row, other: Row) -> tuple[float, float]:
    """Return the difference of two accuracies over the same pairs, and its standard error by bootstrap."""
    gains = one.correct.astype(np.int64) - other.correct.astype(np.int64)
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(gains), counts / len(gains), size=_RESAMPLES)
    return one.accuracy - other.accuracy, float((drawn @ values / len(gains)).std())


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, each beside whitened pixels."""
    baseline = next(row for row in rows if row.name == "whitened pixels")
    lines = ["| embedding | accuracy | AUC | minus whitened pixels |", "|---|---|---|---|"]
    for row in rows:
        mean, error = difference(row, baseline)
        lines.append(f"| {row.name} | {row.accuracy:.4f} | {row.auc:.4f} | {mean:+.3f} ± {error:.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--faces", required=True, metavar="SETS", help="a path or glob of .rec files")
    parser.add_argument("--labeled", required=True, metavar="SET", help="a .rec file with labels")
    parser.add_argument("--pairs", required=True, type=Path, metavar="FOLDER", help="of the three pair files")
    parser.add_argument("--view2", action="store_true", help="evaluate on lfw.bin")
    landmarks_from = parser.add_mutually_exclusive_group()
    landmarks_from.add_argument("--landmarks", metavar="RUN", help="of a landmark CNN: adds LAFS at its landmarks")
    landmarks_from.add_argument(
        "--mediapipe", metavar="PYTHON", help="of its environment: trains that CNN first, on MediaPipe's points"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["LAFS", "DINO-face"])
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining (2)")
    parser.add_argument("--finetuning-seeds", type=int, default=5, help="5")
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 2, 4, 10], help="labeled images k; none: leave out")
    parser.add_argument("--steps", type=int, help="of pretraining; default: the preset's")
    parser.add_argument(
        "--components", type=int, nargs=2, default=[COMPONENTS, NEIGHBOR_COMPONENTS], help="of whitenings, of neighbors"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files, work = VIEW_2 if options.view2 else VIEW_1, options.work.absolute()
    sets = (filesystem.absolute(options.faces), filesystem.absolute(options.labeled), options.pairs)
    methods, landmarks = options.methods, options.landmarks and filesystem.absolute(options.landmarks)
    plan = Plan(work, *sets, files, options.steps, tuple(options.components), landmarks)
    if options.mediapipe is not None:
        plan = replace(plan, landmarks=landmark_run(plan, filesystem.absolute(options.mediapipe)))
    if plan.landmarks is not None:
        methods = [LANDMARKS, *methods]
        add_landmarks(plan.landmarks)
    rows = frozen_rows(plan, methods, options.seeds)
    rows += few_label_rows(plan, methods, options.shots, options.seeds, options.finetuning_seeds)
    print(f"\n{table(rows)}\n\n{cpu_name()}, Python {sys.version.split()[0]}, one thread", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
