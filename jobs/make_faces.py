"""Render synthetic faces: a training set, verification pairs of other identities, contact sheet.

python jobs/make_faces.py OUT --identities 500 --images 20 --workers 2 --pairs 3000
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs make-faces` with these arguments."""
    execute("make-faces", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("make-faces"))
