"""Detect the faces of photos and align them to 112 × 112, as a packed set or as a list of points.

python jobs/align.py photos faces --workers 8
python jobs/align.py photos --points points.parquet
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs align` with these arguments."""
    execute("align", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("align"))
