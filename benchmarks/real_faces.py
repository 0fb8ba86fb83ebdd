"""What is learned on real faces: baselines, frozen networks and few labels, in one table.

    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER             LFW View 1
    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER --view2     View 2

Settings are chosen on View 1 (lfw_dev_train.bin and lfw_dev_test.bin in FOLDER); View 2 (lfw.bin) is for the end.
Networks are trained by lafs_small_data.yaml and distillation.yaml of configs/pretrain on SETS, whose labels are not
read, and whitenings are fitted on the same faces. With --landmarks RUN, a landmark CNN of `lafs train-landmarks`,
there is also LAFS at its landmarks in place of the template's; with --mediapipe .venv-mediapipe/bin/python (`make
mediapipe-environment`) that CNN is made first, from MediaPipe's points of SETS. With --long, DINO-face is also trained
for as long as the distillation. Few labels are those of SET. Every run is one process of one thread; runs and results
are kept in WORK, so an interrupted call continues. Accuracy is that of ten folds, over both files of View 1 in
proportion to their pairs. Seeds are averaged; differences are over the same pairs, with the standard error of a paired
bootstrap.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.real_face_embeddings import Embed, centered, class_token, network, pixels, raw_pixels, whitened
from benchmarks.real_face_runs import (
    COMPONENTS,
    DISTILLED,
    LANDMARKS,
    METHODS,
    NEIGHBOR_COMPONENTS,
    SHALLOW,
    Arm,
    Plan,
    add_landmarks,
    add_long,
    beside,
    chosen_arms,
    finetune,
    landmark_run,
    pretrain,
)
from benchmarks.real_face_tables import Correct, Row, difference_table, few_name, few_table, frozen_table, time_table
from benchmarks.views import cpu_name
from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.verification import kfold_accuracy, kfold_correct, pair_distances, roc_curve

VIEW_1, VIEW_2 = ("lfw_dev_train.bin", "lfw_dev_test.bin"), ("lfw.bin",)
BASELINE = "whitened pixels"
READOUTS: dict[str, Callable[..., Embed]] = {
    "class": class_token,
    "class, whitened": partial(whitened, readout="class"),
    "all, whitened": partial(whitened, readout="all"),
    "all, neighbors": partial(whitened, readout="all", neighbors=True),
}


def evaluate(plan: Plan, embed: Embed) -> tuple[float, float, Correct]:
    """Return accuracy, AUC and which pairs are decided correctly, over all pair files."""
    accuracies, areas, correct = [], [], []
    for file in plan.files:
        path = str(plan.pairs / file)
        distances, same = pair_distances(embed(path)), open_pairs(path).same
        correct.append(kfold_correct(distances, same))
        accuracies.append(kfold_accuracy(distances, same).mean)
        areas.append(roc_curve(-distances, same).area)
    sizes = [len(part) for part in correct]
    accuracy, area = (float(np.average(values, weights=sizes)) for values in (accuracies, areas))
    return accuracy, area, np.concatenate(correct)


def keep(plan: Plan, name: str, make: Callable[[], Embed], *, file: str | None = None, seed: int | None = None) -> Row:
    """Return a row from WORK/results; it is computed first if it is missing.

    Args:
        plan: folders.
        name: of the row.
        make: what returns its embedding.
        file: name of its result; None: as the row.
        seed: of several.
    """
    stem = (file or name).replace(" ", "_").replace(":", "")
    path = plan.work / "results" / "+".join(Path(file).stem for file in plan.files) / f"{stem}.json"
    if not path.exists():
        accuracy, auc, correct = evaluate(plan, make())
        content = {"accuracy": accuracy, "auc": auc, "correct": correct.astype(int).tolist()}
        with filesystem.atomic_write(str(path)) as target:
            target.write(json.dumps(content).encode())
        print(f"{file or name:<60} {accuracy:.4f} / {auc:.4f}", flush=True)
    stored = json.loads(path.read_text())
    return Row(name, seed, stored["accuracy"], stored["auc"], np.array(stored["correct"], dtype=np.bool_))


def baseline_rows(plan: Plan) -> list[Row]:
    """Return the rows of pixels."""
    rows = [keep(plan, "raw pixels", lambda: raw_pixels)]
    rows.append(keep(plan, BASELINE, lambda: pixels(plan, neighbors=False)))
    return [*rows, keep(plan, "whitened pixels, neighbors", lambda: pixels(plan, neighbors=True))]


def frozen_rows(plan: Plan, methods: Sequence[str], seeds: int, readouts: Sequence[str]) -> list[Row]:
    """Return the rows of frozen networks, by these of `READOUTS`."""
    rows = []
    for seed in range(seeds):
        for method in methods:
            path = pretrain(plan, method, seed)
            is_distilled = method in (DISTILLED, SHALLOW)
            # Untrained, these networks are those of other rows.
            kinds = ("frozen",) if is_distilled or method.endswith(" long") else ("untrained", "frozen")
            # A distillation teaches the class token alone.
            read = [name for name in readouts if name.startswith("class") or not is_distilled]
            for kind, readout in itertools.product(kinds, read):
                of = "class" if is_distilled else "all"
                make = partial(READOUTS[readout], plan, path, of, trained=kind == "frozen")
                file = f"{method}, seed {seed}, {kind}: {readout}"
                rows.append(keep(plan, f"{method}, {kind}: {readout}", make, file=file, seed=seed))
    return rows


def few_label_rows(plan: Plan, arms: Sequence[Arm], shots: Sequence[str], seeds: int, finetuning: int) -> list[Row]:
    """Return the rows of networks that were trained on few labels.

    Args:
        plan: folders.
        arms: ways to train.
        shots: labeled images of an identity, or `all`.
        seeds: of pretraining, taken in turn.
        finetuning: number of finetuning seeds.
    """
    rows = []
    for seed in range(finetuning):
        for shot in shots:
            for arm in arms:
                run = partial(finetune, plan, arm, shot, seed, seed % seeds)
                name = few_name(shot, arm.name)
                file = f"{name}, seed {seed}, centered"
                make = lambda run=run: centered(network(run()))  # noqa: E731
                rows.append(keep(plan, name, make, file=file, seed=seed))
    return rows


def few_tables(rows: Sequence[Row], baseline: Row, arms: Sequence[Arm], shots: Sequence[str]) -> str:
    """Return accuracies of few labels, and each pretrained arm beside those that it has to beat, as Markdown."""
    pairs = [
        (few_name(shot, arm.name), other)
        for shot in shots
        for arm in arms
        if arm.is_pretrained
        for other in (*(few_name(shot, name) for name in beside(arm)), baseline.name)
    ]
    return f"{few_table(rows, shots)}\n\n{difference_table([*rows, baseline], pairs)}"


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
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=["LAFS", "DINO-face"])
    parser.add_argument(
        "--long", action="store_true", help="also frozen DINO-face after the processor time of a distillation"
    )
    parser.add_argument(
        "--readouts", nargs="+", choices=list(READOUTS), default=["class", "all, neighbors"], help="of frozen networks"
    )
    parser.add_argument("--parts", nargs="+", choices=["frozen", "few"], default=["frozen", "few"], help="of the table")
    parser.add_argument("--files", nargs="+", default=[*VIEW_1], metavar="FILE", help="of View 1 (default: both)")
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining (2)")
    parser.add_argument("--finetuning-seeds", type=int, default=5, help="5")
    parser.add_argument(
        "--shots", nargs="+", default=["1", "2", "4", "10"], help="labeled images k of an identity, or `all`"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of few labels, as the table names them (all)")
    parser.add_argument("--steps", type=int, help="of pretraining; default: the preset's")
    parser.add_argument("--finetuning-steps", type=int, default=200, help="on few labels (200); on all ten times these")
    parser.add_argument(
        "--components", type=int, nargs=2, default=[COMPONENTS, NEIGHBOR_COMPONENTS], help="of whitenings, of neighbors"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files, work = VIEW_2 if options.view2 else tuple(options.files), options.work.absolute()
    sets = (filesystem.absolute(options.faces), filesystem.absolute(options.labeled), options.pairs)
    methods, landmarks = options.methods, options.landmarks and filesystem.absolute(options.landmarks)
    plan = Plan(work, *sets, files, options.steps, tuple(options.components), landmarks, options.finetuning_steps)
    if options.mediapipe is not None:
        plan = replace(plan, landmarks=landmark_run(plan, filesystem.absolute(options.mediapipe)))
    if plan.landmarks is not None:
        methods = [LANDMARKS, DISTILLED, SHALLOW, *methods]
        add_landmarks(plan)
    baselines = baseline_rows(plan)
    if "frozen" in options.parts:
        frozen = [*methods, *(add_long(methods) if options.long else [])]
        rows = frozen_rows(plan, frozen, options.seeds, options.readouts)
        print(f"\n{frozen_table([*baselines, *rows], BASELINE)}", flush=True)
    if "few" in options.parts:
        arms = chosen_arms(methods, plan.landmarks, options.arms)
        rows = few_label_rows(plan, arms, options.shots, options.seeds, options.finetuning_seeds)
        baseline = next(row for row in baselines if row.name == BASELINE)
        print(f"\n{few_tables(rows, baseline, arms, options.shots)}", flush=True)
    print(f"\n{time_table(plan.work / 'seconds')}\n\n{cpu_name()}, Python {sys.version.split()[0]}, one thread")


if __name__ == "__main__":
    main(sys.argv[1:])
