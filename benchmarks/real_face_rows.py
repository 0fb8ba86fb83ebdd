"""Rows of `benchmarks.real_faces`: accuracy, AUC and correct pairs of an embedding, each computed once and kept.

These functions are what its processes run: whatever a row needs is made first where it is missing, by one process.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.real_face_embeddings import Embed, centered, class_token, network, outputs, pixels, raw_pixels, whitened
from benchmarks.real_face_methods import DISTILLED, SAME_START, SHALLOW, Arm
from benchmarks.real_face_runs import Plan, add_landmarks, finetune, pretrain, start_of
from benchmarks.real_face_tables import Correct, Row, few_name
from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.verification import kfold_accuracy, kfold_correct, pair_distances, roc_curve

BASELINE = "whitened pixels"
READOUTS: dict[str, Callable[..., Embed]] = {
    "class": class_token,
    "class, whitened": partial(whitened, readout="class"),
    "all, whitened": partial(whitened, readout="all"),
    "all, neighbors": partial(whitened, readout="all", neighbors=True),
}


def prepare(plan: Plan) -> None:
    """Prepare a process: one thread, and the methods that follow from the plan."""
    torch.set_num_threads(1)
    if plan.landmarks is not None:
        add_landmarks(plan)


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


def frozen_rows(plan: Plan, methods: Sequence[str], readouts: Sequence[str], seed: int) -> list[Row]:
    """Return the rows of the frozen networks of a pretraining seed, by these of `READOUTS`."""
    rows = []
    for method in methods:
        path = pretrain(plan, method, seed)
        is_distilled = method in (DISTILLED, SHALLOW)
        kinds = ("frozen",) if method in SAME_START else ("untrained", "frozen")
        # A distillation teaches the class token alone.
        read = [name for name in readouts if name.startswith("class") or not is_distilled]
        for kind, readout in itertools.product(kinds, read):
            of = "class" if is_distilled else "all"
            make = partial(READOUTS[readout], plan, path, of, trained=kind == "frozen")
            file = f"{method}, seed {seed}, {kind}: {readout}"
            rows.append(keep(plan, f"{method}, {kind}: {readout}", make, file=file, seed=seed))
    # Up to a gigabyte, which finetuning runs do not read.
    outputs.cache_clear()
    return rows


def make_starts(plan: Plan, arms: Sequence[Arm], seed: int) -> list[Row]:
    """Make what these arms start from, with a pretraining seed, before processes share it; return no rows."""
    for arm in arms:
        start_of(plan, arm, seed)
    return []


def few_label_row(plan: Plan, seeds: int, seed: int, shot: str, arm: Arm) -> Row:
    """Return the row of a network that was trained on few labels.

    Args:
        plan: folders.
        seeds: of pretraining, taken in turn.
        seed: of finetuning.
        shot: labeled images of an identity, or `all`.
        arm: the way to train.
    """
    name = few_name(shot, arm.name)

    def make() -> Embed:
        return centered(network(finetune(plan, arm, shot, seed, seed % seeds)))

    return keep(plan, name, make, file=f"{name}, seed {seed}, centered", seed=seed)
