"""Prove the training step on a GPU: one command, a stage after the other, each with a time limit.

    python -m benchmarks.gpu_proof --device cuda --folder proof     # under ten minutes on one H200
    python -m benchmarks.gpu_proof --device cpu --folder proof      # tiny sizes, a test of itself

Each stage is a process of its own, whose result is a JSON file as soon as it ends; `proof/summary.md` is made of them,
also by `--summary` alone. It starts with torch and NumPy only: a stage that needs what is not installed (pydantic for
all that imports the package, Ray) is skipped and says so. Packages that lie elsewhere are found through PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Seconds that a stage may take, in the order in which they run: what decides first, speed after what must be right.
STAGES = {
    "environment": 30,
    "ceilings": 40,
    "steps_beside_cpu": 60,
    "bfloat16_band": 40,
    "no_host_sync": 40,
    "checkpointing": 40,
    "resume": 40,
    "graphs": 90,
    "speed_eager": 60,
    "speed_compiled": 120,
    "speed_checkpointed": 60,
    "speed_plain": 60,
    "attention": 40,
    "sources": 60,
    "neighbors": 90,
    "collectives": 60,
    "ray": 120,
}
TOTAL_S = 570


def run_stages(names: Sequence[str], device: str, folder: Path) -> bool:
    """Run stages in processes of their own; return whether none failed."""
    folder.mkdir(parents=True, exist_ok=True)
    start, good = time.monotonic(), True
    for name in names:
        left = TOTAL_S - (time.monotonic() - start)
        # A CPU may be anybody's: its run is a test, not a proof.
        limit = min(STAGES[name], left) if device == "cuda" else 3 * STAGES[name]
        if limit < 5:
            result: dict[str, Any] = {"status": "skipped", "reason": f"{TOTAL_S} s are over"}
        else:
            result = _run(name, device, folder, limit)
        good = good and result["status"] != "failed"
        print(
            f"{name:20} {result['status']:8} {result.get('wall_s', 0):6.1f} s  {result.get('reason', '')}", flush=True
        )
        (folder / f"{name}.json").write_text(json.dumps({"stage": name, "device": device, **result}, indent=2) + "\n")
        (folder / "summary.md").write_text(summary(folder))
    return good


def _run(name: str, device: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run one stage; what it found, or why it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_proof", "--device", device, "--folder", str(folder)]
    command += ["--stage", name]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took more than {limit:.0f} s", "wall_s": limit}
    lines = done.stdout.strip().splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        result = {"status": "failed", "reason": f"exit code {done.returncode}: {done.stderr[-1500:]}"}
    return {**result, "wall_s": round(time.monotonic() - start, 1)}


def run_stage(name: str, device: str) -> dict[str, Any]:
    """Run a stage in this process."""
    try:
        import torch

        from benchmarks import gpu_speed, gpu_stages

        if device == "cpu":
            # Threads of the CPU that others use wait for each other.
            torch.set_num_threads(1)
        found = (gpu_stages.STAGES | gpu_speed.STAGES)[name](device)
    except ImportError as error:
        return {"status": "skipped", "reason": f"needs {error.name or error}, which is not installed"}
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {"status": "passed", **found}


def summary(folder: Path) -> str:
    """Tables of the results in a folder, as Markdown."""
    results = [
        json.loads((folder / f"{name}.json").read_text()) for name in STAGES if (folder / f"{name}.json").exists()
    ]
    lines = ["| stage | result | s | found |", "|---|---|---|---|"]
    for result in results:
        found = result.get("reason") or "; ".join(
            f"{key} {value}"
            for key, value in result.items()
            if key not in {"stage", "device", "status", "wall_s", "rows"}
        )
        lines.append(f"| {result['stage']} | {result['status']} | {result.get('wall_s', 0)} | {found} |")
    for result in results:
        if rows := result.get("rows"):
            titles = list(rows[0])
            lines += ["", f"**{result['stage']}**", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
            lines += [f"| {' | '.join(str(row.get(title, '')) for title in titles)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all stages, some, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, required=True, help="where the JSON files and summary.md go")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--summary", action="store_true", help="only write summary.md of what the folder has")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(run_stage(arguments.stage, arguments.device)))
        return
    if arguments.summary:
        (arguments.folder / "summary.md").write_text(summary(arguments.folder))
        return
    if not run_stages(arguments.stages, arguments.device, arguments.folder):
        sys.exit("a stage failed")


if __name__ == "__main__":
    main()
