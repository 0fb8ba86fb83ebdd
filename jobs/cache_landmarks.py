"""Compute the landmarks of every face of a set once, for pretraining with landmarks.source=cached.

python jobs/cache_landmarks.py runs/part_fvit packed --workers 8
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs cache-landmarks` with these arguments."""
    execute("cache-landmarks", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("cache-landmarks"))
