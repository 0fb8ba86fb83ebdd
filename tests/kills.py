"""Kills jobs at random times (SIGKILL) and compares what the same command then makes with an undisturbed result.

    python -m tests.kills FOLDER                            # the kills of PLAN, about 25 minutes on two idle cores
    python -m tests.kills FOLDER --plan pack=3 --seed 7     # others
    python -m tests.kills FOLDER --summary                  # counts by job

A trial starts a job in an empty folder, kills its process once to three times at times from (seed, job, trial), then
runs the same command to its end; the result must be that of a run that nothing disturbed, bit for bit. The file
FOLDER/kills.jsonl has a line for each trial; the same command goes on with those that are missing. Jobs without Ray run
in forks of a process that has imported everything, so that kills meet their work and not their imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from tests.training.faces import PRETRAIN, ROOT, TINY_PRETRAIN, arguments, run, tiny, without_times, write_face_set
from tests.tuning.sweeps import sweep

PLAN = {"pretrain": 26, "finetune": 22, "pack": 20, "cache_landmarks": 18, "embed": 16, "sweep": 12, "pretrain-ray": 4}
"""Kills of each job; pretrain-ray starts a Ray of its own each time."""

_MOST_IN_A_ROW = 3
_LIMIT_S = 3600


@dataclass(frozen=True)
class Job:
    """A job on the faces of `inputs`, which writes below `out`.

    Args:
        start: begins it, given inputs and out, and returns its process.
        digest: of its result.
    """

    start: Callable[[Path, Path], Any]
    digest: Callable[[Path], dict[str, str]]


def command(script: str, *arguments: str) -> None:
    """Run a job's script in this process, as its command does."""
    sys.argv = [script, *arguments]
    os.chdir(ROOT)
    runpy.run_path(script, run_name="__main__")


def _forked(make: Callable[[Path, Path], list[str]]) -> Callable[[Path, Path], Any]:
    return lambda inputs, out: _fork(out.with_suffix(".log"), command, *make(inputs, out))


def _fork(log: Path, function: Callable[..., Any], *values: Any) -> Any:
    """Call a function in a fork that prints to a file."""

    def silent() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        function(*values)

    process = multiprocessing.get_context("fork").Process(target=silent)
    process.start()
    return process


def _sweep(inputs: Path, out: Path) -> None:
    from tests.tuning.test_driver import drive

    out.mkdir(parents=True, exist_ok=True)
    drive(sweep(out, inputs / "train.rec", settings={"run.storage": str(out / "runs"), "duration": "4 steps"}))


def _on_ray(inputs: Path, out: Path) -> Any:
    where = [f"data.path={inputs / 'train.rec'}", f"run.storage={out}", "run.name=run", "compute.workers=2"]
    steps = ["duration=60 steps", "checkpoints.every=6 steps", "ingest.actors_per_worker=1"]
    arguments = [sys.executable, "jobs/pretrain.py", PRETRAIN, *TINY_PRETRAIN, *where, *steps]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def hash_of(value: Any) -> str:
    """A digest of nested containers, tensors and plain values, every bit of them."""
    found = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, dict):
            for key in sorted(one, key=str):
                add(str(key))
                add(one[key])
        elif isinstance(one, (list, tuple)):
            for each in one:
                add(each)
        elif isinstance(one, torch.Tensor):
            add([str(one.dtype), *one.shape])
            found.update(one.contiguous().view(torch.uint8).numpy().tobytes() if one.ndim else str(one.item()).encode())
        elif isinstance(one, np.ndarray):
            add([str(one.dtype), *one.shape])
            found.update(np.ascontiguousarray(one).tobytes())
        else:
            found.update(repr(one).encode() + b"\0")

    add(value)
    return found.hexdigest()


def run_digest(folder: Path) -> dict[str, str]:
    """Of a run: its reports without times, and all of its newest checkpoint but paths."""
    (config,) = folder.rglob("config.json")
    checkpoint = load_checkpoint(str(max((config.parent / "checkpoints").glob("*.pt"))))
    parts = {name: hash_of(part) for name, part in checkpoint.items() if name not in ("config", "versions")}
    lines = [without_times(line) for line in read_metrics(str(config.parent / "metrics.jsonl"))]
    return {**parts, "metrics": hash_of(lines)}


def file_digest(folder: Path) -> dict[str, str]:
    """Of all files below a folder; locks are no result."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def sweep_digest(folder: Path) -> dict[str, str]:
    """Of a sweep: settings and values of every report, the winner's file but paths, and all runs' last checkpoints."""
    found = {}
    for path in sorted((folder / "sweeps" / "sweep").glob("trials/*/trial.json")):
        record = json.loads(path.read_text())
        reports = [
            [one[name] for name in ("report", "seed", "step", "value", "objective")] for one in record["reports"]
        ]
        found[path.parent.name] = hash_of([record["status"], record["settings"], reports])
        found |= {f"{path.parent.name} {name}": value for name, value in run_digest(path.parent).items()}
    winner = (folder / "sweeps" / "sweep" / "winner.yaml").read_text()
    return {**found, "winner": hash_of(winner.replace(str(folder), ""))}


JOBS: dict[str, Job] = {
    "pretrain": Job(
        _forked(
            lambda inputs, out: [
                *arguments("pretrain", out, inputs / "train.rec", "duration=16 steps", "checkpoints.every=2 steps")
            ]
        ),
        run_digest,
    ),
    "finetune": Job(
        _forked(
            lambda inputs, out: [
                *arguments("finetune", out, inputs / "train.rec", "duration=16 steps", "checkpoints.every=2 steps")
            ]
        ),
        run_digest,
    ),
    "pack": Job(
        _forked(
            lambda inputs, out: [
                *("jobs/pack.py", str(inputs / "many.rec"), str(out), "--shards", "4", "--memory", "32M", "--check")
            ]
        ),
        file_digest,
    ),
    "cache_landmarks": Job(
        _forked(
            lambda inputs, out: [
                *("jobs/cache_landmarks.py", str(inputs / "net"), str(inputs / "many.rec"), "--out", str(out))
            ]
        ),
        file_digest,
    ),
    "embed": Job(
        _forked(
            lambda inputs, out: ["jobs/embed.py", str(inputs / "net"), str(inputs / "many.rec"), str(out / "e.parquet")]
        ),
        file_digest,
    ),
    "sweep": Job(lambda inputs, out: _fork(out.with_suffix(".log"), _sweep, inputs, out), sweep_digest),
    "pretrain-ray": Job(_on_ray, run_digest),
}


def _make_inputs(inputs: Path) -> None:
    inputs.mkdir(parents=True)
    write_face_set(inputs / "train.rec")
    write_face_set(inputs / "many.rec", 40, 12)
    run(
        tiny(
            inputs,
            inputs / "train.rec",
            "run.name=net",
            "duration=1 steps",
            "optim.warmup=0 steps",
            kind=FinetuneConfig,
        )
    )


def _result(job: Job, out: Path, target: Path) -> None:
    target.write_text(json.dumps(job.digest(out)))


def digest(job: Job, out: Path) -> dict[str, str]:
    """The digest of a result, made in a fork: this process must not start threads of torch."""
    target = out.with_suffix(".json")
    finish(_fork(out.with_suffix(".log"), _result, job, out, target), "a digest")
    found: dict[str, str] = json.loads(target.read_text())
    target.unlink()
    return found


def finish(process: Any, what: str) -> None:
    """Wait for the end of a process, which must succeed."""
    if isinstance(process, subprocess.Popen):
        code = process.wait(_LIMIT_S)
    else:
        process.join(_LIMIT_S)
        code = process.exitcode
    assert code == 0, f"{what}: exit code {code}"


def _is_running(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else bool(process.is_alive())


def kill_after(process: Any, seconds: float) -> bool:
    """Kill a process after a time; False if it ended before."""
    deadline = time.monotonic() + seconds
    while _is_running(process) and time.monotonic() < deadline:
        time.sleep(0.002)
    if not _is_running(process):
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60) if isinstance(process, subprocess.Popen) else process.join(60)
    return True


def trials(
    folder: Path, name: str, kills: int, seed: int, done: dict[tuple[str, int, int], int]
) -> Iterator[dict[str, Any]]:
    """Do a job's trials until it was killed so often; those of an earlier start count.

    Yields:
        A line for each.
    """
    job, inputs, out = JOBS[name], folder / "inputs", folder / name
    shutil.rmtree(out, ignore_errors=True)
    begin = time.monotonic()
    finish(job.start(inputs, out), f"{name}, undisturbed")
    whole_s = time.monotonic() - begin
    expected = digest(job, out)
    number = killed = 0
    while killed < kills:
        if (name, seed, number) in done:
            killed += done[name, seed, number]
            number += 1
            continue
        shutil.rmtree(out, ignore_errors=True)
        draw = random.Random(f"{seed} {name} {number}")
        times = [draw.uniform(0.0, whole_s) for _ in range(min(draw.randint(1, _MOST_IN_A_ROW), kills - killed))]
        # A job that has ended is not started again: its outputs are refused or complete.
        met = [seconds for seconds in times if kill_after(job.start(inputs, out), seconds)]
        ended = len(met) < len(times)
        if not ended:
            finish(job.start(inputs, out), f"{name}, trial {number}, killed after {met}")
        found = digest(job, out)
        differs = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        yield {
            "job": name,
            "seed": seed,
            "trial": number,
            "killed_after_s": [round(seconds, 3) for seconds in met],
            "whole_s": round(whole_s, 3),
            "equal": not differs,
            "differs": differs,
        }
        killed, number = killed + len(met), number + 1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines so far; a last one cut by a kill of this program is left out."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def summary(lines: list[dict[str, Any]]) -> list[str]:
    """Counts by job."""
    kills, runs, wrong = Counter[str](), Counter[str](), Counter[str]()
    for line in lines:
        kills[line["job"]] += len(line["killed_after_s"])
        runs[line["job"]] += 1
        wrong[line["job"]] += not line["equal"]
    rows = [f"{name}: {kills[name]} kills, {runs[name]} results, {wrong[name]} of them different" for name in runs]
    return [*rows, f"all: {kills.total()} kills, {runs.total()} results, {wrong.total()} of them different"]


def main(folder: Path, plan: dict[str, int], seed: int) -> list[dict[str, Any]]:
    """Do the trials of a plan that are missing; return all lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kills.jsonl"
    done = {(one["job"], one["seed"], one["trial"]): len(one["killed_after_s"]) for one in read_lines(path)}
    if not (folder / "inputs" / "net").exists():
        shutil.rmtree(folder / "inputs", ignore_errors=True)
        finish(_fork(folder / "inputs.log", _make_inputs, folder / "inputs"), "the inputs")
    with path.open("a") as file:
        for name, kills in plan.items():
            for line in trials(folder, name, kills, seed, done):
                print(json.dumps(line), file=file, flush=True)
    return read_lines(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", nargs="+", default=[f"{name}={kills}" for name, kills in PLAN.items()])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="only print what kills.jsonl holds")
    options = parser.parse_args()
    found = (
        read_lines(options.folder / "kills.jsonl")
        if options.summary
        else main(options.folder, {k: int(v) for k, v in (one.split("=") for one in options.plan)}, options.seed)
    )
    print("\n".join(summary(found)))
    sys.exit(any(not line["equal"] for line in found))
