"""`lafs status`: the state of a run, from its directory."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.messages import show
from lafs_ray.training.monitoring.status import read_status


def print_status(options: Namespace) -> None:
    """Print the status of a run, which may be running."""
    status = read_status(options.run)
    show(status.as_json() if options.json else status)
