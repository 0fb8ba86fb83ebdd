"""Command line of `jobs/align.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from lafs_ray.cli.align_options import add_align_arguments, align_options, pack_aligned, print_outcome
from lafs_ray.cli.main import require_persistent_path
from lafs_ray.cli.pack import add_set_arguments, pack_options
from lafs_ray.data.aligning.session import align_to_points
from lafs_ray.data.packing.options import check_options
from lafs_ray.data.packing.session import Apply, apply_in_process
from lafs_ray.engine.console import log_to
from lafs_ray.engine.progress_bar import CountHandler
from lafs_ray.engine.ray_tasks import apply_on_ray
from lafs_ray.errors import ConfigError


def align_job(description: str, arguments: Sequence[str]) -> None:
    """Align photos into a packed set or a list of points.

    Raises:
        UserError: the arguments or the photos are wrong.
    """
    options = _parse(description, arguments)
    apply: Apply = apply_in_process if options.workers == 0 else apply_on_ray(options.workers)
    if options.points is None:
        require_persistent_path("OUT", options.paths[-1])
        pack_aligned(options, pack_options(options), apply)
        return
    require_persistent_path("--points", options.points)
    check_options(replace(pack_options(options), sources=(), out=options.points))
    handler = CountHandler()
    with log_to(handler):
        aligning = align_options(options, handler)
        outcome = align_to_points(aligning, options.paths[0], options.points, apply)
    print_outcome(outcome, aligning)
    print(f"{options.points}: for jobs/pack.py {options.paths[0]} OUT --landmarks {options.points}")  # noqa: T201


def _parse(description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="folders, lists or .rec of photos, then the folder of the set")
    add("--points", metavar="LIST", help="write the points of one source instead of a set: .csv or .parquet")
    add_align_arguments(add)
    add("--sheet", help="picture of some photos of each kind (.png)")
    add("--force", action="store_true", help="replace the files of --points, --report and --sheet")
    add_set_arguments(add)
    options = parser.parse_intermixed_args(arguments)
    if len(options.paths) < 2 if options.points is None else len(options.paths) != 1:
        raise ConfigError(
            "arguments",
            found=" ".join(arguments) or "none",
            expected="PHOTOS … OUT, or PHOTOS --points LIST",
            fix="python jobs/align.py --help",
        )
    return options
