"""`lafs align`: photos to aligned faces, or to their points."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from lafs_ray.cli.align_options import align_options, pack_aligned, print_outcome
from lafs_ray.cli.pack import pack_options
from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.aligning.session import align_to_points
from lafs_ray.data.packing.options import check_options
from lafs_ray.data.packing.session import Apply, apply_in_process
from lafs_ray.engine.console import log_to
from lafs_ray.engine.progress_bar import CountHandler
from lafs_ray.engine.ray_tasks import apply_on_ray
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show


def align_job(options: Namespace) -> None:
    """Align photos into a packed set or a list of points.

    Raises:
        UserError: the arguments or the photos are wrong.
    """
    if len(options.paths) < 2 if options.points is None else len(options.paths) != 1:
        points = [] if options.points is None else ["--points", options.points]
        raise ConfigError(
            "arguments",
            found=" ".join([*options.paths, *points]) or "none",
            expected="PHOTOS … OUT, or PHOTOS --points LIST",
            fix="see the examples of `lafs align --help`",
        )
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
    show(f"{options.points}: for lafs pack {options.paths[0]} OUT --landmarks {options.points}")
