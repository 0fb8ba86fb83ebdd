"""`lafs report`: one HTML page about runs, or about a sweep."""

from __future__ import annotations

import logging
from argparse import Namespace

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.cli.whiten import whitening_options
from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.report.session import ReportRequest, report_page


def write_report(options: Namespace) -> None:
    """Write the page, and print where it is.

    Raises:
        UserError: an error in the arguments, or in what they name.
    """
    require_persistent_path("--out", options.out)
    inputs = [path for path in (options.faces, options.pairs, options.whiten) if path is not None]
    filesystem.require_output(options.out, force=options.force, inputs=inputs)
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    request = ReportRequest(
        runs=options.runs,
        faces=options.faces,
        pairs=options.pairs,
        color_order=options.color_order,
        whiten=whitening_options(options),
    )
    content = report_page(request)
    with filesystem.atomic_write(options.out) as file:
        file.write(content)
    show(f"{options.out}: {len(content):,} bytes, one page that needs no other file")
