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
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_face_runs import (
    COMPONENTS,
    LANDMARKS,
    METHODS,
    NEIGHBOR_COMPONENTS,
    Plan,
    add_landmarks,
    arms_of,
    finetune,
    landmark_run,
    pretrain,
    whitened_file,
    whitening,
)
from benchmarks.views import cpu_name
from lafs_ray.data.eval_sets import EvalFaces, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.embed import center, embed_faces, flip_sum
from lafs_ray.evaluation.verification import kfold_accuracy, pair_distances, raw_pixel_embeddings, roc_curve
from lafs_ray.evaluation.whitening import embed_pixels, fit_pixels
from lafs_ray.training.checkpoint.inference import load_for_inference

Embed = Callable[[EvalFaces], NDArray[np.floating[Any]]]
Correct = NDArray[np.bool_]

VIEW_1, VIEW_2 = ("lfw_dev_train.bin", "lfw_dev_test.bin"), ("lfw.bin",)
_RESAMPLES = 10_000


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
    path = (
        plan.work
        / "results"
        / "+".join(Path(file).stem for file in plan.files)
        / f"{name.replace(' ', '_').replace(':', '')}.json"
    )
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


def network(path: str, *, trained: bool = True) -> Embed:
    """Return the plain embedding of a run's network."""
    embedder = load_for_inference(path).embedder(trained=trained)
    return lambda faces: flip_sum(embed_faces(embedder, faces))


def centered(embed: Embed) -> Embed:
    """Return an embedding less its mean over the faces: after few steps embeddings lie in a narrow cone."""
    return lambda faces: center(embed(faces))


def whitened(plan: Plan, path: str, readout: str, *, neighbors: bool = False, trained: bool = True) -> Embed:
    """Return the whitened embedding of a run's network."""
    return network(whitened_file(plan, path, readout, neighbors=neighbors, trained=trained))


def pixels(plan: Plan, *, neighbors: bool) -> Embed:
    """Return whitened gray pixels."""
    fitted = fit_pixels(whitening(plan, neighbors=neighbors))
    return lambda faces: flip_sum(embed_pixels(fitted, faces))


def raw_pixels(faces: EvalFaces) -> NDArray[np.floating[Any]]:
    """Return raw pixels less their mean, in float32."""
    rows = (faces.read(start, min(start + 256, faces.num_images)) for start in range(0, faces.num_images, 256))
    return np.concatenate([raw_pixel_embeddings(part).astype(np.float32) for part in rows])


def baseline_rows(plan: Plan) -> list[Row]:
    """Return the rows of pixels."""
    rows = [keep(plan, "raw pixels", lambda: raw_pixels)]
    rows.append(keep(plan, "whitened pixels", lambda: pixels(plan, neighbors=False)))
    return [*rows, keep(plan, "whitened pixels, neighbors", lambda: pixels(plan, neighbors=True))]


def frozen_rows(plan: Plan, methods: Sequence[str], seeds: int) -> list[Row]:
    """Return the rows of frozen networks."""
    rows = []
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
        for arm in arms_of([*methods], plan.landmarks):
            for seed in range(finetuning_seeds):
                chosen = (arm, k, seed, seed % seeds)
                make = lambda chosen=chosen: centered(network(finetune(plan, *chosen)))  # noqa: E731
                rows.append(keep(plan, f"{k} labels, {arm.name}, seed {seed}, centered", make))
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
    parser.add_argument("--parts", nargs="+", choices=["frozen", "few"], default=["frozen", "few"], help="of the table")
    parser.add_argument("--files", nargs="+", default=[*VIEW_1], metavar="FILE", help="of View 1 (default: both)")
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining (2)")
    parser.add_argument("--finetuning-seeds", type=int, default=5, help="5")
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 2, 4, 10], help="labeled images k of an identity")
    parser.add_argument("--steps", type=int, help="of pretraining; default: the preset's")
    parser.add_argument(
        "--components", type=int, nargs=2, default=[COMPONENTS, NEIGHBOR_COMPONENTS], help="of whitenings, of neighbors"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files, work = VIEW_2 if options.view2 else tuple(options.files), options.work.absolute()
    sets = (filesystem.absolute(options.faces), filesystem.absolute(options.labeled), options.pairs)
    methods, landmarks = options.methods, options.landmarks and filesystem.absolute(options.landmarks)
    plan = Plan(work, *sets, files, options.steps, tuple(options.components), landmarks)
    if options.mediapipe is not None:
        plan = replace(plan, landmarks=landmark_run(plan, filesystem.absolute(options.mediapipe)))
    if plan.landmarks is not None:
        methods = [LANDMARKS, *methods]
        add_landmarks(plan.landmarks)
    rows = baseline_rows(plan)
    if "frozen" in options.parts:
        rows += frozen_rows(plan, methods, options.seeds)
    if "few" in options.parts:
        rows += few_label_rows(plan, methods, options.shots, options.seeds, options.finetuning_seeds)
    print(f"\n{table(rows)}\n\n{cpu_name()}, Python {sys.version.split()[0]}, one thread", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
