"""What is learned on real faces: baselines, frozen networks and few labels, in one table.

    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER             LFW View 1
    python -m benchmarks.real_faces WORK --faces SETS --labeled SET --pairs FOLDER --view2     View 2

Settings are chosen on View 1 (lfw_dev_train.bin and lfw_dev_test.bin in FOLDER); View 2 (lfw.bin) is for the end.
Networks are trained by lafs_small_data.yaml, lafs_neighbors.yaml and distillation.yaml of configs/pretrain on SETS,
whose labels are not read, and whitenings are fitted on the same faces. With --landmarks RUN, a landmark CNN of `lafs
train-landmarks`, there is also LAFS at its landmarks in place of the template's; with --mediapipe
.venv-mediapipe/bin/python (`make mediapipe-environment`) that CNN is made first, from MediaPipe's points of SETS. Few
labels are those of SET. A run has one thread; --processes seeds of pretraining, or finetuning runs, are made at a
time; runs and results are kept in WORK, so an interrupted call continues. Accuracy is that of ten folds, over both
files of View 1 in proportion to their pairs. Seeds are averaged; differences are over the same pairs, with the
standard error of a paired bootstrap.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.process_pool import process_pool, results
from benchmarks.real_face_methods import AT_LANDMARKS, DISTILLED, LANDMARKS, METHODS, Arm, beside, chosen_arms
from benchmarks.real_face_rows import (
    BASELINE,
    READOUTS,
    baseline_rows,
    few_label_row,
    frozen_rows,
    make_starts,
    prepare,
)
from benchmarks.real_face_runs import ALL, COMPONENTS, NEIGHBOR_COMPONENTS, Plan, landmark_run
from benchmarks.real_face_tables import Row, difference_table, few_name, few_table, frozen_table, time_table
from benchmarks.views import cpu_name
from lafs_ray.cli.main import run
from lafs_ray.data.eval_sets import open_images, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.training.checkpoint.inference import load_for_inference

VIEW_1, VIEW_2 = ("lfw_dev_train.bin", "lfw_dev_test.bin"), ("lfw.bin",)


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


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
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
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=[*dict.fromkeys([*METHODS, *AT_LANDMARKS])],
        default=["LAFS", "DINO-face"],
        help=f"beside {LANDMARKS} and {DISTILLED}, which come with --landmarks and --mediapipe",
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
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="of pretraining (float32)"
    )
    parser.add_argument("--finetuning-steps", type=int, default=200, help="on few labels (200); on all ten times these")
    parser.add_argument("--processes", type=int, default=1, help="at a time: of seeds, and of finetuning runs (1)")
    parser.add_argument(
        "--components", type=int, nargs=2, default=[COMPONENTS, NEIGHBOR_COMPONENTS], help="of whitenings, of neighbors"
    )
    options = parser.parse_args(arguments)
    has_landmarks = options.landmarks is not None or options.mediapipe is not None
    if not has_landmarks and (found := next((name for name in AT_LANDMARKS if name in options.methods), None)):
        parser.error(f"{found} needs --landmarks or --mediapipe")
    if options.mediapipe is not None and shutil.which(options.mediapipe) is None:
        parser.error(f"--mediapipe: {options.mediapipe} is no program; `make mediapipe-environment` makes it")
    if min(options.seeds, options.finetuning_seeds, options.processes) < 1:
        parser.error("--seeds, --finetuning-seeds, --processes: at least 1")
    if wrong := [shot for shot in options.shots if shot != ALL and not shot.isdecimal()]:
        parser.error(f"--shots: {wrong[0]} is neither a number nor `{ALL}`")
    # Two processes must not make one run.
    options.shots, methods = list(dict.fromkeys(options.shots)), dict.fromkeys(options.methods)
    options.methods = [*([LANDMARKS, DISTILLED] if has_landmarks else []), *methods]
    options.arms = chosen_arms(options.methods, options.arms, has_landmarks=has_landmarks)
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the folders and numbers of the options, with the landmark CNN, which is made if it is missing.

    Raises:
        UserError: a set, a pair file or the run of the landmark CNN is missing.
    """
    files = VIEW_2 if options.view2 else tuple(options.files)
    landmarks = options.landmarks and filesystem.absolute(options.landmarks)
    plan = Plan(
        options.work.absolute(),
        filesystem.absolute(options.faces),
        filesystem.absolute(options.labeled),
        options.pairs,
        files,
        options.steps,
        tuple(options.components),
        landmarks,
        options.finetuning_steps,
        options.precision,
    )
    # Missing files are refused before hours of work.
    for path in (plan.faces, plan.labeled):
        open_images(path)
    for file in files:
        open_pairs(str(plan.pairs / file))
    if landmarks is not None:
        load_for_inference(landmarks)
    if options.mediapipe is not None:
        plan = replace(plan, landmarks=landmark_run(plan, filesystem.absolute(options.mediapipe)))
    return plan


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, then print the table."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    plan = plan_of(options)
    prepare(plan)
    with process_pool(options.processes, prepare, plan) as pool:
        pixels = pool.submit(baseline_rows, plan)
        if "frozen" in options.parts:
            make = partial(frozen_rows, plan, options.methods, options.readouts)
            rows = [pixels, *(pool.submit(make, seed) for seed in range(options.seeds))]
            print(f"\n{frozen_table([*itertools.chain(*results(rows))], BASELINE)}", flush=True)
        if "few" in options.parts:
            seeds = range(min(options.seeds, options.finetuning_seeds))
            results([pixels, *(pool.submit(make_starts, plan, options.arms, seed) for seed in seeds)])
            runs = itertools.product(range(options.finetuning_seeds), options.shots, options.arms)
            few = results([pool.submit(few_label_row, plan, options.seeds, *run) for run in runs])
            baseline = next(row for row in pixels.result() if row.name == BASELINE)
            print(f"\n{few_tables(few, baseline, options.arms, options.shots)}", flush=True)
    used = f"one thread a process, {options.processes} at a time"
    print(f"\n{time_table(plan.work / 'seconds')}\n\n{cpu_name()}, Python {sys.version.split()[0]}, {used}")


if __name__ == "__main__":
    raise SystemExit(run(main))
