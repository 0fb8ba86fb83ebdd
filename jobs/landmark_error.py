"""Measure a landmark CNN: mean distance from given landmarks, in percent of the eyes' distance.

python jobs/landmark_error.py runs/landmarks
python jobs/landmark_error.py runs/landmarks real/packed real/landmarks
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs landmark-error` with these arguments."""
    execute("landmark-error", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("landmark-error"))
