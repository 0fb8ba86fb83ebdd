"""Packing from its options to the finished set; the caller decides where the tasks run."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lafs_ray.data.alignment_check import check_encoded
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import Manifest
from lafs_ray.data.packing.lock import locked
from lafs_ray.data.packing.options import PackOptions, PackPlan, make_plan
from lafs_ray.data.packing.pack_dir import FinishedShard, PackDir, is_intact, shard_name
from lafs_ray.data.packing.shard_writer import MergeInputs, write_metadata, write_shard
from lafs_ray.data.packing.sorted_runs import (
    SortedRun,
    first_errors,
    missing_ranges,
    read_runs,
    sample_images,
    sort_records,
    too_many_bad,
)
from lafs_ray.data.packing.source_labels import number_labels
from lafs_ray.data.packing.sources import ImageSource
from lafs_ray.data.progress import ProgressLog
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

Apply = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""Run `task(shared, item)` for every item, anywhere and in any order, and yield the results."""

_TASKS_PER_WORKER = 4
# Read one by one before pass 1, in seconds even from an object store.
_SAMPLE_IMAGES = 64


def apply_in_process(task: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
    """Run the tasks of `Apply` in this process."""
    return (task(shared, item) for item in items)


def pack_faces(
    options: PackOptions, apply: Apply = apply_in_process, sources: tuple[ImageSource, ...] | None = None
) -> Manifest:
    """Pack the sources, or continue an interrupted packing of the same request.

    Args:
        options: of the packing.
        apply: runs the tasks.
        sources: aligned faces to read instead of opening `options.sources`, one for each.

    Raises:
        DataError: an option is impossible; a source is missing or changes; the folder is in use or holds another set;
            there are too many bad records; the disk is full.
    """
    plan = make_plan(options, sources)
    size, shards = f"{plan.size_bytes / 1e6:,.1f} MB", count_of(plan.num_shards, "shard")
    logger.info("%d images, %s, to %s in %s", plan.num_records, size, shards, plan.out)
    with locked(plan.out):
        folder = PackDir(plan)
        folder.write_request()
        folder.remove_partials()
        packing = _Packing(plan, folder, apply)
        return packing.run(is_checked=sources is not None)


def count_of(count: int, unit: str) -> str:
    """Return such as "1 shard" or "2 shards"."""
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


@dataclasses.dataclass(frozen=True, eq=False)
class _Packing:
    """The two passes, and what comes before and after them."""

    plan: PackPlan
    folder: PackDir
    apply: Apply

    def run(self, *, is_checked: bool) -> Manifest:
        shards = self._intact_shards()
        manifest = self.folder.manifest()
        if len(shards) == self.plan.num_shards and manifest is not None:
            logger.info("already complete: the checksums of all shards match")
            # A process killed after writing the manifest did not clean up.
            self.folder.clean_up()
            return manifest
        if not is_checked:
            self._check_alignment()
        missing = [shard for shard in range(self.plan.num_shards) if shard not in shards]
        for shard in missing:
            # A damaged shard must not look complete until it is written again.
            filesystem.delete(filesystem.join(self.plan.out, self._name(shard)))
        runs = self._sort(missing)
        inputs = MergeInputs(self.plan, runs, number_labels(self.plan, runs))
        shards |= self._merge(inputs, missing)
        manifest = write_metadata(inputs, [shards[shard] for shard in sorted(shards)])
        self.folder.clean_up()
        return manifest

    def _check_alignment(self) -> None:
        """Warn, before hours of packing, if a sample of the images is not aligned."""
        plan = self.plan
        if plan.options.rules.resize:
            logger.info("--resize scales images, it does not align faces")
        alignment = check_encoded(sample_images(plan, _SAMPLE_IMAGES))
        if warning := alignment.warning("the images"):
            logger.warning(warning)

    def _name(self, shard: int) -> str:
        return shard_name(shard, self.plan.num_shards)

    def _intact_shards(self) -> dict[int, FinishedShard]:
        finished = {
            shard.shard: shard for shard in self.folder.finished_shards() if shard.entry.name == self._name(shard.shard)
        }
        if not finished:
            return {}
        checked = self.apply(is_intact, self.plan.out, [finished[n] for n in sorted(finished)])
        intact = {shard: finished[shard] for shard, is_good in checked if is_good}
        if damaged := sorted(set(finished) - set(intact)):
            names = ", ".join(map(self._name, damaged[:5]))
            logger.info("%s to write again: %s", count_of(len(damaged), "damaged shard"), names)
        logger.info("%s kept", count_of(len(intact), "finished shard"))
        return intact

    def _sort(self, missing: Sequence[int]) -> tuple[SortedRun, ...]:
        """Run pass 1 for the records that no sorted run covers yet."""
        total = self.plan.num_records
        runs = read_runs(self.plan.scratch)
        ranges = missing_ranges(runs, total)
        self._check_space(ranges, missing)
        done = sum(run.stop - run.first for run in runs)
        progress = ProgressLog(logger, "records sorted (pass 1)", total, done)
        for new_runs in self.apply(sort_records, self.plan, self._split(ranges)):
            runs += new_runs
            progress.add(sum(run.stop - run.first for run in new_runs))
            self._check_bad(runs, is_final=False)
        self._check_bad(runs, is_final=True)
        return tuple(sorted(runs, key=lambda run: run.first))

    def _split(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Split ranges of records so that each fits in memory and every worker gets several."""
        options = self.plan.options
        num_tasks = max(math.ceil(self.plan.size_bytes / options.task_bytes), _TASKS_PER_WORKER * options.workers, 1)
        step = max(math.ceil(self.plan.num_records / num_tasks), 1)
        return [(begin, min(begin + step, stop)) for first, stop in ranges for begin in range(first, stop, step)]

    def _check_bad(self, runs: Sequence[SortedRun], *, is_final: bool) -> None:
        allowed, num_bad = self.plan.max_bad, sum(run.num_bad for run in runs)
        num_read = sum(run.stop - run.first for run in runs)
        are_all_bad = num_bad == num_read and (is_final or num_bad > allowed)
        if are_all_bad:
            # The runs are empty: without them, other options may be tried on the same folder.
            self.folder.clean_up()
        if are_all_bad or num_bad > allowed:
            raise too_many_bad(num_bad, num_read, allowed, first_errors(runs))

    def _check_space(self, ranges: Sequence[tuple[int, int]], missing: Sequence[int]) -> None:
        """Fail now rather than when the disk is full."""
        plan = self.plan
        if plan.options.rules.resize or any(source.has_landmarks or source.kind == "list" for source in plan.sources):
            return  # The size of the images in the set is unknown.
        left = sum(stop - first for first, stop in ranges) / plan.num_records
        needs = {plan.out: plan.size_bytes * len(missing) // plan.num_shards}
        needs[plan.scratch] = int(plan.size_bytes * left)
        disks: dict[int, tuple[str, int]] = {}
        for uri, needed in needs.items():
            path = reading.local_path(uri)
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
                    expected=f"{needed / 1e6:,.0f} MB: temporary files and shards, each as large "
                    f"as the {plan.size_bytes / 1e6:,.0f} MB of images",
                    fix="free disk space, or set another folder for temporary files with --scratch",
                )

    def _merge(self, inputs: MergeInputs, missing: Sequence[int]) -> dict[int, FinishedShard]:
        """Run pass 2 for the missing shards."""
        for shard in missing:
            if not any(run.row_starts[shard + 1] > run.row_starts[shard] for run in inputs.runs):
                num_bad = sum(run.num_bad for run in inputs.runs)
                lines = "".join(f"\n    {line}" for line in first_errors(inputs.runs)[:10])
                raise DataError(
                    self._name(shard),
                    found=f"no usable image for it; bad records left out: {num_bad}{lines}",
                    expected="at least one image in every shard",
                    fix="repair the sources, or reduce --shards",
                )
        # The index of the sources is large, and pass 2 reads only the runs.
        shared = dataclasses.replace(inputs, plan=dataclasses.replace(self.plan, sources=()))
        done = self.plan.num_shards - len(missing)
        progress = ProgressLog(logger, "shards written (pass 2)", self.plan.num_shards, done)
        shards = {}
        for finished in self.apply(write_shard, shared, missing):
            self.folder.mark_finished(finished)
            shards[finished.shard] = finished
            progress.add()
        return shards
