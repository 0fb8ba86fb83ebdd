"""A packing from its request to the finished set; who runs the tasks is the caller's choice."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.data.packed_set import MANIFEST, MAX_LABELS, Manifest, read_manifest
from lafs_ray.data.packing.folder import PackFolder, is_sound
from lafs_ray.data.packing.lock import Lock, locked
from lafs_ray.data.packing.options import PackOptions, check_options, open_sources, request_of
from lafs_ray.data.packing.runs import (
    RunFooter,
    Shuffle,
    Sorting,
    gaps,
    none_sound,
    read_runs,
    shard_edges,
    sort_piece,
    too_many_bad,
)
from lafs_ray.data.packing.shard_writer import Merging, Written, describe, named_bad, write_shard
from lafs_ray.data.packing.sources import Source
from lafs_ray.errors import DataError

Apply = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""Runs `task(shared, item)` for every item, anywhere and in any order, and yields the results."""

_PIECES_PER_WORKER = 4


def apply_in_process(
    task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]
) -> Iterator[Any]:
    """`Apply` in this process."""
    return (task(shared, item) for item in items)


def pack_faces(
    options: PackOptions, apply: Apply = apply_in_process, say: Callable[[str], object] = print
) -> Manifest:
    """Pack the sources, or continue where the same request was interrupted.

    Raises:
        DataError: an option is impossible; a source is missing or changes; the folder is in use or
            holds another set; too many records are bad; the disk is full.
    """
    check_options(options)
    out = filesystem.absolute(options.out)
    sources = open_sources(options, out)
    starts = np.cumsum([0, *(source.num_records for source in sources)]).astype(np.int64)
    num_records = int(starts[-1])
    size = sum(source.size_bytes for source in sources)
    num_shards = options.num_shards or max(math.ceil(size / options.shard_bytes), 1)
    if num_shards > num_records:
        found = f"{num_shards} shards of {num_records} images"
        raise DataError("--shards", found=found, expected="an image a shard", fix="ask for fewer")
    request = request_of(options, sources, num_shards)
    scratch = None if options.scratch is None else filesystem.absolute(options.scratch)
    folder = PackFolder(out, request, num_shards, scratch)
    say(f"{num_records} images, {size / 1e9:.2f} GB, to {num_shards} shards in {out}")
    with locked(out) as lock:
        folder.claim()
        folder.sweep()
        packing = _Packing(options, folder, sources, starts, request, apply, lock, say)
        return packing.run()


@dataclass(frozen=True, eq=False)
class _Packing:
    """The two passes and what comes after them."""

    options: PackOptions
    folder: PackFolder
    sources: tuple[Source, ...]
    starts: NDArray[np.int64]
    request: dict[str, Any]
    apply: Apply
    lock: Lock
    say: Callable[[str], object]

    def run(self) -> Manifest:
        kept = self._kept_shards()
        uri = filesystem.join(self.folder.uri, MANIFEST)
        if len(kept) == self.folder.num_shards and filesystem.exists(uri):
            self.say(f"complete already: {len(kept)} shards, checksums compared")
            # The manifest may stand while a kill came before the rest was cleared away.
            self.folder.finish()
            return read_manifest(uri)
        missing = [shard for shard in range(self.folder.num_shards) if shard not in kept]
        for shard in missing:
            # A damaged one must not pass for sound while it waits for its turn.
            filesystem.delete(filesystem.join(self.folder.uri, self.folder.name(shard)))
        runs = self._sort(missing)
        first_labels = self._first_labels(runs)
        written = {**kept, **self._merge(runs, first_labels, missing)}
        manifest = describe(
            self.folder.uri,
            self.options,
            self.sources,
            self.request,
            runs=runs,
            first_labels=first_labels,
            written=[written[shard] for shard in sorted(written)],
        )
        self.folder.finish()
        return manifest

    def _kept_shards(self) -> dict[int, Written]:
        recorded = {
            written.shard: written
            for written in self.folder.recorded()
            if written.entry.name == self.folder.name(written.shard)
        }
        if not recorded:
            return {}
        found = self.apply(_look_at, (self.folder.uri, recorded), sorted(recorded))
        kept = {shard: recorded[shard] for shard, is_good in found if is_good}
        damaged = sorted(set(recorded) - set(kept))
        if damaged:
            names = ", ".join(self.folder.name(shard) for shard in damaged[:5])
            self.say(f"{len(damaged)} shards differ from their checksums: {names}")
        self.say(f"{len(kept)} finished shards kept")
        return kept

    def _sort(self, missing: Sequence[int]) -> tuple[RunFooter, ...]:
        """Pass 1, as far as its runs are not there yet."""
        total = int(self.starts[-1])
        runs = read_runs(self.folder.scratch)
        left = gaps(runs, total)
        self._check_space(left, missing)
        sorting = Sorting(
            sources=self.sources,
            starts=self.starts,
            shuffle=Shuffle(total, self.options.seed),
            edges=shard_edges(total, self.folder.num_shards),
            rules=self.options.rules,
            scratch=self.folder.scratch,
            run_bytes=self.options.task_bytes,
            max_bad=self.options.max_bad,
        )
        tell = _Progress(
            "pass 1, sorted", total, sum(run.stop - run.first for run in runs), self.say
        )
        for footers in self.apply(sort_piece, sorting, self._pieces(left)):
            self.lock.check()
            runs += footers
            tell.add(sum(run.stop - run.first for run in footers))
            self._check_bad(runs, so_far=True)
        self._check_bad(runs, so_far=False)
        return tuple(sorted(runs, key=lambda run: run.first))

    def _pieces(self, left: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges of records small enough for a run each, and for every worker to have some."""
        total = int(self.starts[-1])
        size = sum(source.size_bytes for source in self.sources)
        wanted = max(
            math.ceil(size / self.options.task_bytes), _PIECES_PER_WORKER * self.options.workers, 1
        )
        step = max(math.ceil(total / wanted), 1)
        return [
            (begin, min(begin + step, stop))
            for first, stop in left
            for begin in range(first, stop, step)
        ]

    def _check_bad(self, runs: Sequence[RunFooter], *, so_far: bool) -> None:
        count = sum(run.left_out for run in runs)
        is_all = count == sum(run.stop - run.first for run in runs)
        if is_all and (count > self.options.max_bad or not so_far):
            # Nothing is lost with what was done, and other options may now be tried on the folder.
            self.folder.finish()
            raise none_sound(count, named_bad(runs)[:10], so_far=so_far)
        if count > self.options.max_bad:
            named = named_bad(runs)[:10]
            raise too_many_bad(count, self.options.max_bad, named, so_far=so_far)

    def _check_space(self, left: Sequence[tuple[int, int]], missing: Sequence[int]) -> None:
        """Refuse now what would fill the disk in an hour."""
        encodes = self.options.rules.resize or any(
            getattr(source, "landmarks", None) is not None for source in self.sources
        )
        if encodes or any(source.kind == "list" for source in self.sources):
            return  # How large the images will be is not known.
        size = sum(source.size_bytes for source in self.sources)
        share = sum(stop - first for first, stop in left) / int(self.starts[-1])
        needs = {self.folder.uri: size * len(missing) // self.folder.num_shards}
        needs[self.folder.scratch] = int(size * share)
        disks: dict[int, tuple[str, int]] = {}
        for uri, needed in needs.items():
            path = filesystem.local_path(uri)
            if path is None:
                continue
            os.makedirs(path, exist_ok=True)
            device = os.stat(path).st_dev
            disks[device] = (path, disks.get(device, ("", 0))[1] + needed)
        for path, needed in disks.values():
            if (free := shutil.disk_usage(path).free) < needed:
                raise DataError(
                    path,
                    found=f"{free / 1e6:,.0f} MB free",
                    expected=f"{needed / 1e6:,.0f} MB: temporary runs and shards, each as large as "
                    f"the {size / 1e6:,.0f} MB of images",
                    fix="free some space, or put temporary files elsewhere with --scratch",
                )

    def _first_labels(self, runs: Sequence[RunFooter]) -> list[int]:
        """The first label of each source, then the number of all labels."""
        first = [0]
        for number, source in enumerate(self.sources):
            highest = max((run.highest[number] for run in runs), default=-1)
            first.append(first[-1] + max(source.num_identities or 0, highest + 1))
        if first[-1] > MAX_LABELS:
            raise DataError(
                "identities",
                found=f"{first[-1]} in all sources",
                expected=f"at most {MAX_LABELS}: labels are float32 in the file",
                fix="leave labels out, or pack fewer sources",
            )
        return first

    def _merge(
        self, runs: tuple[RunFooter, ...], first_labels: Sequence[int], missing: Sequence[int]
    ) -> dict[int, Written]:
        """Pass 2 for the shards that are missing."""
        empty = [
            shard
            for shard in missing
            if not sum(run.row_starts[shard + 1] - run.row_starts[shard] for run in runs)
        ]
        if empty:
            raise DataError(
                self.folder.name(empty[0]),
                found=f"no sound image for it; {sum(run.left_out for run in runs)} were left out:"
                + "".join(f"\n    {line}" for line in named_bad(runs)[:10]),
                expected="at least one in every shard",
                fix="mend the sources, or ask for fewer --shards",
            )
        merging = Merging(
            out=self.folder.uri,
            num_shards=self.folder.num_shards,
            runs=runs,
            starts=self.starts,
            first_labels=tuple(first_labels[:-1]),
            block_bytes=self.options.task_bytes,
        )
        done = self.folder.num_shards - len(missing)
        tell = _Progress("pass 2, shards", self.folder.num_shards, done, self.say)
        written = {}
        for one in self.apply(write_shard, merging, missing):
            self.lock.check()
            self.folder.record(one)
            written[one.shard] = one
            tell.add(1)
        return written


def _look_at(shared: tuple[str, dict[int, Written]], shard: int) -> tuple[int, bool]:
    folder, recorded = shared
    return shard, is_sound(folder, recorded[shard].entry)


class _Progress:
    """Says about every tenth of the work how far it is."""

    def __init__(self, what: str, total: int, done: int, say: Callable[[str], object]) -> None:
        self._what, self._total, self._done, self._say = what, total, done, say
        self._before, self._start = done, time.perf_counter()

    def add(self, count: int) -> None:
        tenth = self._done * 10 // self._total
        self._done += count
        if self._done * 10 // self._total > tenth:
            rate = (self._done - self._before) / max(time.perf_counter() - self._start, 1e-9)
            self._say(f"{self._what} {self._done}/{self._total}, {rate:.0f}/s")
