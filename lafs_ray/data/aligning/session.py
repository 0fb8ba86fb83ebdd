"""Aligning from options to a packed set or a list of points; the caller decides where the tasks run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, Protocol

from lafs_ray.data.aligning.lists import read_request, require_list, write_points, write_report
from lafs_ray.data.aligning.parts import AlignJob, Counts, FinishedPart, finished_part, write_part
from lafs_ray.data.aligning.photos import PhotoRules
from lafs_ray.data.aligning.sheet import write_sheet
from lafs_ray.data.aligning.source import aligned_sources
from lafs_ray.data.bad_records import MaxBad
from lafs_ray.data.detection.backends import open_backend
from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.packed_set import CLAIM, MANIFEST, Manifest, as_json, read_json, read_manifest
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.integrity import verify_set
from lafs_ray.data.packing.lock import locked
from lafs_ray.data.packing.options import PackOptions, check_options
from lafs_ray.data.packing.session import Apply, count_of, pack_faces
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.data.progress import ProgressLog
from lafs_ray.errors import ConfigError, DataError, UserError

logger = logging.getLogger(__name__)

REPORT = "photos.parquet"
"""The report in the folder of an aligned set."""

_PARTS, _REQUEST = "aligning", "align.json"
# Opening a file in an object store is mostly latency.
_CONCURRENT_FILES = 16
_FORMAT = "lafs_ray aligning 1"


class Progress(Protocol):
    """Receives how many photos were done."""

    def add(self, count: int = 1) -> None:
        """Advance."""


@dataclass(frozen=True)
class AlignOptions:
    """Options of an aligning.

    Args:
        detector: `mtcnn`, or the path of a YuNet file.
        rules: how photos become faces.
        report: list of what became of every photo, `.csv` or `.parquet`; None: none.
        sheet: picture of some photos of each kind; None: none.
        force: whether report, sheet and points may replace files.
        progress: makes what receives the progress, from unit, total and number done.
    """

    detector: str
    rules: PhotoRules
    report: str | None = None
    sheet: str | None = None
    force: bool = False
    progress: Callable[[str, int, int], Progress] = lambda what, total, done: ProgressLog(logger, what, total, done)


@dataclass(frozen=True)
class Outcome:
    """Result of an aligning.

    Args:
        counts: what became of the photos; None: the set was complete before.
        manifest: of the packed set; None: only points were written.
    """

    counts: Counts | None
    manifest: Manifest | None


def align_to_set(options: AlignOptions, pack: PackOptions, apply: Apply) -> Outcome:
    """Align photos straight into a packed set, or continue an interrupted aligning of the same request.

    Args:
        options: of the aligning.
        pack: sources, folder and options of the packed set.
        apply: runs the tasks.

    Raises:
        UserError: see `open_backend`, `open_source` and `pack_faces`; no face was found; the folder holds another set.
    """
    check_options(pack)
    out = filesystem.absolute(pack.out)
    job = _open_job(options, pack.sources, filesystem.join(out, _PARTS))
    _check_outputs(options, pack.sources)
    request = _request(job)
    if filesystem.exists(filesystem.join(out, MANIFEST)):
        return Outcome(None, _complete_set(pack.out, out, job, request, apply))
    _refuse_foreign(pack.out, out)
    with _kept_if_used(out), locked(out):
        finished = _align(options, job, request, apply)
        write_report(filesystem.join(out, REPORT), job, finished, as_json(request))
        _write_extras(options, job, finished)
    pack = dataclasses.replace(pack, color_order="rgb", rules=ImageRules(), max_bad=MaxBad(0))
    manifest = pack_faces(pack, apply, aligned_sources(job, finished))
    filesystem.delete_tree(job.folder)
    return Outcome(_sum(finished), manifest)


def align_to_points(options: AlignOptions, path: str, points: str, apply: Apply) -> Outcome:
    """Write the points of the faces of a folder or a list, or continue an interrupted job of the same request.

    Args:
        options: of the aligning.
        path: of the photos.
        points: the list to write, `.csv` or `.parquet`.
        apply: runs the tasks.

    Raises:
        UserError: as for `align_to_set`; every face of a photo is requested; the photos are in `.rec` files.
    """
    require_list("--points", points)
    if options.rules.faces.choice == "every":
        found = "every face of a photo, into a list with one face each"
        raise ConfigError("--faces", found=found, expected="largest or central", fix="write a set instead of --points")
    filesystem.require_output(points, force=options.force, inputs=[path])
    uri = filesystem.absolute(points)
    options = dataclasses.replace(options, rules=dataclasses.replace(options.rules, quality=None))
    job = _open_job(options, [path], uri + ".parts")
    (source,) = job.sources
    if source.kind not in ("folder", "list"):
        expected = "a folder of photos, or a list of them"
        raise ConfigError("--points", found=f"photos in {path}", expected=expected, fix="write a set instead")
    _check_outputs(options, [path])
    with _kept_if_used(job.folder), locked(job.folder):
        finished = _align(options, job, _request(job), apply)
        write_points(uri, job, finished)
        _write_extras(options, job, finished)
    filesystem.delete_tree(job.folder)
    return Outcome(_sum(finished), None)


@contextlib.contextmanager
def _kept_if_used(folder: str) -> Iterator[None]:
    """Remove a folder that is new and empty after a user's error."""
    is_new, path = not filesystem.exists(folder), reading.local_path(folder)
    try:
        yield
    except UserError:
        if is_new and path is not None:
            with contextlib.suppress(OSError):  # Not empty: an interrupted job continues there.
                os.rmdir(path)
        raise


def _open_job(options: AlignOptions, paths: Sequence[str], folder: str) -> AlignJob:
    sources = tuple(open_source(path) for path in paths)
    return AlignJob(sources, open_backend(options.detector), options.rules, folder)


def _check_outputs(options: AlignOptions, inputs: Sequence[str]) -> None:
    for output in filter(None, (options.report, options.sheet)):
        filesystem.require_output(output, force=options.force, inputs=inputs)
    if options.report is not None:
        require_list("--report", options.report)


def _request(job: AlignJob) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "sources": [
            {"uri": source.uri, "images": source.num_records, "fingerprint": source.fingerprint}
            for source in job.sources
        ],
        "detector": {"name": job.backend.name, "weights": job.backend.fingerprint},
        "rules": dataclasses.asdict(job.rules),
    }


def _complete_set(name: str, out: str, job: AlignJob, request: dict[str, Any], apply: Apply) -> Manifest:
    """Return the manifest of a finished set of the same request, after comparing checksums."""
    if read_request(filesystem.join(out, REPORT)) != as_json(request):
        raise _other(name)
    verify_set(out, apply)
    # A process killed after the last shard did not clean up.
    filesystem.delete_tree(job.folder)
    logger.info("already complete: the checksums of all shards match")
    return read_manifest(filesystem.join(out, MANIFEST))


def _refuse_foreign(name: str, out: str) -> None:
    names = filesystem.list_names(out)
    has_started = filesystem.exists(filesystem.join(out, _PARTS, _REQUEST))
    if not has_started and (CLAIM in names or any(one.endswith((".rec", ".idx")) for one in names)):
        raise _other(name)


def _other(name: str) -> DataError:
    return DataError(
        name,
        found="a set of other photos, or made with another detector or other options",
        expected="an empty folder, or one where the same command was interrupted",
        fix="choose another folder, or delete this one to align again",
    )


def _align(options: AlignOptions, job: AlignJob, request: dict[str, Any], apply: Apply) -> list[FinishedPart]:
    """Write the missing parts; return all, in order.

    Raises:
        DataError: another aligning was interrupted here; no face was found.
    """
    uri = filesystem.join(job.folder, _REQUEST)
    if filesystem.exists(uri) and read_json(uri) != request:
        raise _other(job.folder)
    with filesystem.atomic_write(uri) as file:
        file.write(as_json(request))
    parts, names = job.parts(), set(filesystem.list_names(job.folder))
    with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
        known = pool.map(partial(finished_part, job.folder), [part for part in parts if part.name in names])
    finished = {one.part: one for one in known if one is not None}
    if finished:
        logger.info("%s kept", count_of(len(finished), "finished part"))
    done = sum(one.counts.photos for one in finished.values())
    progress = options.progress("photos", sum(source.num_records for source in job.sources), done)
    for one in apply(write_part, job, [part for part in parts if part not in finished]):
        finished[one.part] = one
        progress.add(one.counts.photos)
    result = [finished[part] for part in parts]
    if not _sum(result).faces:
        raise _no_face(job, _sum(result))
    return result


def _no_face(job: AlignJob, counts: Counts) -> DataError:
    filesystem.delete_tree(job.folder)
    kinds = ", ".join(f"{count} {status}" for status, count in sorted(counts.statuses.items()))
    return DataError(
        job.sources[0].uri,
        found=f"no face to keep in {counts.photos} photos: {kinds}",
        expected="photos with faces",
        fix="look at some photos; lower --min-eyes or --min-score, or choose another --detector",
    )


def _write_extras(options: AlignOptions, job: AlignJob, finished: Sequence[FinishedPart]) -> None:
    if options.report is not None:
        write_report(options.report, job, finished)
    if options.sheet is not None:
        write_sheet(options.sheet, job, finished)


def _sum(finished: Sequence[FinishedPart]) -> Counts:
    return reduce(add, (one.counts for one in finished), Counts())
