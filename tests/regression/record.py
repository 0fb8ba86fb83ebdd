"""Record what a refactoring must not change, bit by bit, or check that nothing has changed.

    python -m tests.regression.record --write    # before the refactoring
    python -m tests.regression.record --check    # after it: exit code 1 if a value differs

`--parts` chooses some of: debug, tokens, two_workers, sweep (the last two start a Ray). A record holds for one class of
machines (`values.machine_class`); another class has a file of its own.

All torch code runs on one thread, whatever OMP_NUM_THREADS says: with 1, 2 and none the values of debug and tokens were
the same (AMD EPYC of family 26, 2 cores). When `torch.set_num_threads(1)` was replaced by 2 there, the losses and last
checkpoints of all runs changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.regression import runs
from tests.regression.values import class_name, column_values, differences, machine_class, run_values, sha256

# New names by old ones: of metrics, parts of a checkpoint, columns of a batch, settings of a sweep. Renaming anything
# else is a difference; the values of what is listed here must stay equal.
RENAMED = {
    "centre_norm": "center_norm",
    "mixup_share": "mixup_lam",
    "regulariser": "regularizer",
    "regulariser_weight": "regularizer_weight",
}

RECORDED = Path(__file__).parent / "recorded"


def debug(folder: Path) -> dict[str, Any]:
    """Values of the generated faces and of the runs in this process."""
    train_file = runs.faces(folder) / "train.rec"
    values: dict[str, Any] = {"faces": sha256(train_file.read_bytes())}
    for name in runs.IN_THIS_PROCESS:
        values[name] = timed(name, partial(_trained, folder, name))
    return values


def tokens(folder: Path) -> dict[str, Any]:
    """Values of one epoch's columns for each source of landmarks."""
    values = {}
    for name in runs.SOURCES:
        runs.train(folder, name)
        values[name] = timed(f"tokens {name}", partial(_columns, folder, name))
    return {"tokens": values}


def continued(folder: Path) -> dict[str, Any]:
    """Values of the runs that were interrupted and continued, under their names."""
    return {name: run_values(runs.train_with_a_break(folder, name)) for name in runs.CONTINUED}


def two_workers(folder: Path) -> dict[str, Any]:
    """Values of pretraining by two Ray Train workers."""
    name = "two_workers"
    return {name: timed(name, partial(_trained, folder, name))}


def sweep(folder: Path) -> dict[str, Any]:
    """Values of a sweep: the figures of its trials, and their training runs."""
    made = timed("sweep", partial(runs.sweep, folder))
    trained = [run_values(file.parent) for file in sorted(made.rglob(runs.METRICS))]
    values = {str(number): one for number, one in enumerate(trained)}
    return {"sweep": {"reports": runs.sweep_reports(made), "runs": values}}


def _trained(folder: Path, name: str) -> dict[str, Any]:
    return run_values(runs.train(folder, name))


def _columns(folder: Path, source: str) -> dict[str, str]:
    return column_values(runs.epoch_columns(folder, source))


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "debug": debug,
    "tokens": tokens,
    "two_workers": two_workers,
    "sweep": sweep,
}


def timed(name: str, function: Callable[[], Any]) -> Any:
    """What a function returns; its name and seconds go to stderr."""
    start = time.perf_counter()
    result = function()
    print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return result


def recorded_file() -> Path:
    """The file of this class of machines, whether it is there or not."""
    return RECORDED / f"{class_name(machine_class())}.json"


def check(found: dict[str, Any], file: Path) -> list[str]:
    """A line for each of the values that differs from a file."""
    return differences(json.loads(file.read_text()), found, RENAMED)


def write(found: dict[str, Any], file: Path) -> None:
    """Write values, and the class of this machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine_class": machine_class(), **found}
    file.write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Run the parts, then write or check their values."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the file anew")
    what.add_argument("--check", action="store_true", help="compare with the file (default)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--file", type=Path, default=recorded_file(), help="of the values")
    parser.add_argument("--folder", type=Path, help="keeps the runs; what it holds is not run anew")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        for part in options.parts:
            found |= PARTS[part](folder)
    if options.write:
        write(found, options.file)
        print(f"{options.file}: {options.file.stat().st_size:,} bytes")
        return 0
    lines = check(found, options.file)
    print("\n".join([*lines, f"{len(lines)} values differ from {options.file}"]))
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
