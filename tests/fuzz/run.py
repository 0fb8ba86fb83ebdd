"""Fuzz one reader: `python -m tests.fuzz.run TARGET --inputs 200000 --seconds 600`.

With atheris installed the inputs are guided by coverage of `lafs_ray.data` (`--engine atheris`); `--engine mutations`
needs nothing and repeats exactly. An input that ends in a finding is kept in `--findings`, also after a crash or a
hang. Memory is limited to `--memory-gb`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import mmap
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path

_HANG_S = 60
# A watchdog is a thread: one for some hundred inputs, not for each.
_WATCHED = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--engine", choices=["mutations", "atheris"], default="mutations")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float, default=3.0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    args = parser.parse_args()
    limit = int(args.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return (_guided if args.engine == "atheris" else _blind)(args)


class _Running:
    """A mapped file with the input at work: it outlives a crash, and costs no system call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(4 + (1 << 17)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def note(self, data: bytes) -> None:
        """Four bytes of length, then the input."""
        self._memory[: 4 + len(data)] = struct.pack("<I", len(data)) + data


def _blind(args: argparse.Namespace) -> int:
    """Random mutations of seeds; findings are collected, not fatal."""
    from tests.fuzz.inputs import mutate, seeds
    from tests.fuzz.targets import TARGETS

    target, pool = TARGETS[args.target], seeds(args.target)
    outcomes: Counter[str] = Counter()
    args.findings.mkdir(parents=True, exist_ok=True)
    running = _Running(args.findings / f"{args.target}-{args.seed}-running")
    begin, done = time.monotonic(), 0
    for done in range(1, args.inputs + 1):
        rng = random.Random(f"{args.target} {args.seed} {done}")
        data = rng.choice(pool) if done > len(pool) else pool[done - 1]
        data = mutate(args.target, data, rng) if done > len(pool) else data
        running.note(data)
        if done % _WATCHED == 1:
            faulthandler.dump_traceback_later(_HANG_S, exit=True)
        try:
            outcomes[target(data)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            what = f"{type(error).__name__}: {str(error)[:80]}"
            if not outcomes[what]:
                name = f"{args.target}-{hashlib.sha1(data).hexdigest()[:12]}"
                (args.findings / name).write_bytes(data)
                print(f"finding {name}: {what}", flush=True)
            outcomes[what] += 1
        if time.monotonic() - begin > args.seconds:
            break
    faulthandler.cancel_dump_traceback_later()
    running.path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = time.monotonic() - begin
    print(f"{args.target}: {done} inputs, {seconds:.0f} s, {peak} MB at most, {dict(outcomes)}")
    return int(any(":" in outcome for outcome in outcomes))


def _guided(args: argparse.Namespace) -> int:
    """libFuzzer through atheris; it stops at the first finding and prints the input's file."""
    import atheris

    with atheris.instrument_imports(include=["lafs_ray.data"]):
        from tests.fuzz.inputs import mutate, seeds
        from tests.fuzz.targets import TARGETS

    corpus = args.findings / f"corpus-{args.target}"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds(args.target):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, max_size)
        return mutate(args.target, bytes(data), rng)[:max_size]

    def once(data: bytes) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            TARGETS[args.target](data)

    options = [f"-runs={args.inputs}", f"-max_total_time={args.seconds}", f"-timeout={_HANG_S}"]
    options += [f"-rss_limit_mb={int(args.memory_gb * 1024)}", "-max_len=65536", f"-seed={args.seed or 1}"]
    options += [f"-artifact_prefix={args.findings}/{args.target}-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutated)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
