"""Print which files and functions of lafs_ray one step of pretraining enters.

    python -m tests.regression.trace_step [key=value …]

One step is what debug mode computes for one batch, in every thread, with the settings of configs/pretrain/debug.yaml.
It begins when the training loop asks a new stream for the batch, so that the order of the records is computed, and the
records are read, decoded and cut, within the step; in a run a thread does the first two for several steps at once. It
ends when `train_step` returns: after the losses, gradients, clipping, the optimizer's step and the teacher's. A step
before it, which is not traced, imports and allocates whatever is done once. Neither reporting nor saving belongs to it.

A function is a code object with a name: comprehensions, generator expressions and lambdas count
with the file that they are in, not as functions; code run by `import` counts as neither.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import lafs_ray
from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.prepare import check_run
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.train_loop import train
from lafs_ray.training.train_step import train_step
from tests.regression import runs

PACKAGE = Path(lafs_ray.__file__).parent
CONFIG = "configs/pretrain/debug.yaml"
_NEVER = 1000


class Trace:
    """The code of a package that is entered between `start` and the end of a function.

    Args:
        package: its folder.
        last: ends the trace when it returns.
    """

    def __init__(self, package: Path, last: CodeType) -> None:
        self._package, self._last = f"{package}/", last
        self._on = False
        self.entered: dict[str, set[CodeType]] = defaultdict(set)

    def start(self) -> None:
        """Trace this thread and those that are started from now on."""
        self._on = True
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if not self._on:
            return
        if event == "call" and code.co_filename.startswith(self._package):
            self.entered[code.co_filename.removeprefix(self._package)].add(code)
        elif event == "return" and code is self._last:
            self._on = False
            threading.setprofile(None)
            sys.setprofile(None)


def trace_step(folder: Path, overrides: Sequence[str]) -> dict[str, set[str]]:
    """Names of the functions that step 1 of a run enters, by file; step 0 is not traced."""
    torch.set_num_threads(1)
    data = runs.faces(folder) / "train.rec"
    settings = [f"data.path={data}", f"run.storage={folder}", *overrides]
    inputs = check_run(load(PretrainConfig, str(runs.ROOT / CONFIG), settings))
    preprocess = inputs.preprocessor()
    training = build_training(
        inputs.config, inputs.sampler, inputs.num_classes, inputs.init_weights, torch.device("cpu"), 0, 1
    )
    trace = Trace(PACKAGE, train_step.__code__)

    def batches() -> Iterator[StepBatch]:
        yield from local_stream(inputs.faces, inputs.sampler, preprocess, 0, 1)
        trace.start()
        yield from local_stream(inputs.faces, inputs.sampler, preprocess, 1, 2)

    train(
        training,
        batches(),
        Meter(inputs.config.batch_size),
        last_step=_NEVER,
        report=lambda _: None,
        report_every=_NEVER,
        save=lambda _: None,
        save_every=_NEVER,
    )
    return {
        file: {code.co_qualname if hasattr(code, "co_qualname") else code.co_name for code in codes}
        for file, codes in trace.entered.items()
    }


def main(arguments: Sequence[str]) -> int:
    """Print a line for each file, its functions with `--functions`, and the totals."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"besides {CONFIG}")
    parser.add_argument("--functions", action="store_true", help="name the functions as well")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        entered = trace_step(Path(folder), options.overrides)
    total = 0
    for file, names in sorted(entered.items()):
        functions = sorted(name for name in names if not name.endswith(">"))
        total += len(functions)
        print(f"lafs_ray/{file}: {len(functions)}")
        if options.functions:
            print("".join(f"    {name}\n" for name in functions), end="")
    print(f"{len(entered)} files, {total} functions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
