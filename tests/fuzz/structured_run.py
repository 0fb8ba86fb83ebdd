"""Fuzz all readers by structure: `python -m tests.fuzz.structured_run --inputs 1000000 --state FOLDER`.

Inputs run in forked children, some hundred in each, under limits of memory (200 MB and ten times the file beyond a
sound input's) and of CPU time; time on the clock says little on a busy machine. Input number N of a target is a
function of (target, seed, N), so a run that was stopped goes on, and a finding can be made again. A child that dies or
hangs costs its batch only, and its input is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.readers import TARGETS, clean_up
from tests.fuzz.structures import mutate

_BATCH = 400
_CPU_S = 5.0
# Of a batch: CPU time, which an input that never ends uses up, and time on the clock for one that waits.
_BATCH_CPU_S, _HANG_S = 120, 1800
_MEMORY_KB = 200 << 10
FINE = ("read", "refused", "refused as a set")


class _Slow(BaseException):
    """An input that takes more than `_CPU_S` of CPU; no reader catches it."""


def made(target: str, seed: int, number: int) -> bytes:
    """Return input `number` of a target."""
    _, mutators, seeds = TARGETS[target]
    if target not in _SEEDS:
        _SEEDS[target] = seeds()
    return mutate(mutators, _SEEDS[target], random.Random(f"{target} {seed} {number}"))


_SEEDS: dict[str, list[bytes]] = {}


def outcome_of(target: str, data: bytes) -> str:
    """Return "read", "refused" or what went wrong."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = TARGETS[target][0](data)
    except _Slow:
        return f"more than {_CPU_S:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]!a}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcome if grown <= _MEMORY_KB + len(data) // 100 else f"memory: {grown >> 10} MB"


def _child(target: str, seed: int, first: int, stop: int, write: int, running: Path) -> None:
    def slow(_signal: int, _frame: Any) -> None:
        raise _Slow

    # Here and not on import: the tests share a process with others, which read the log.
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CPU, (_BATCH_CPU_S, _BATCH_CPU_S + 5))
    signal.signal(signal.SIGPROF, slow)
    counts: Counter[str] = Counter()
    findings = []
    for number in range(first, stop):
        data = made(target, seed, number)
        running.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)
        outcome = outcome_of(target, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts[outcome if outcome in FINE else "finding"] += 1
        if outcome not in FINE:
            findings.append((number, outcome))
    clean_up()
    os.write(write, json.dumps([counts, findings[:20]]).encode())


def batch(target: str, seed: int, first: int, stop: int, folder: Path) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Run inputs first…stop-1 in a child; a child that dies is a finding."""
    running = folder / f"running-{os.getpid()}"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(read)
            _child(target, seed, first, stop, write, running)
            os._exit(0)
        os._exit(1)
    os.close(write)
    deadline = time.monotonic() + _HANG_S
    done = (0, 0)
    while done[0] == 0 and time.monotonic() < deadline:
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    ended = f"the child ended with {done[1]}"
    if done[0] == 0:
        ended = f"the child had not ended after {_HANG_S:g} s"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    if text:
        counts, findings = json.loads(text)
        return Counter(counts), [(number, outcome) for number, outcome in findings]
    data = running.read_bytes() if running.exists() else b""
    name = f"{target}-{hashlib.sha1(data).hexdigest()[:12]}"
    (folder / name).write_bytes(data)
    return Counter({"finding": 1, "lost": stop - first - 1}), [(-1, f"{ended}: {name}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS))
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    stored = args.state / f"structured-{args.seed}.json"
    state: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    each = -(-args.inputs // len(args.targets))
    for target in args.targets:  # Before the fork, so that children do not begin with it.
        TARGETS[target][0](made(target, args.seed, 0))
    while waiting := [name for name in args.targets if state.get(name, {}).get("done", 0) < each]:
        for target in waiting:
            own = state.setdefault(target, {"done": 0, "counts": {}, "findings": []})
            stop = min(own["done"] + _BATCH, each)
            counts, findings = batch(target, args.seed, own["done"], stop, args.state)
            own["counts"] = dict(Counter(own["counts"]) + counts)
            own["findings"] += findings[: max(100 - len(own["findings"]), 0)]
            own["done"] = stop
            for number, outcome in findings:
                print(f"{target} {number}: {outcome}", flush=True)
            stored.write_text(json.dumps(state))
    total: Counter[str] = Counter()
    for target in args.targets:
        total += Counter(state[target]["counts"])
        print(target, state[target]["counts"])
    print(f"{sum(total.values())} inputs: {dict(total)}")
    return int(total["finding"] > 0)


if __name__ == "__main__":
    sys.exit(main())
