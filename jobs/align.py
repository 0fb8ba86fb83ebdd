"""Detect the faces of photos and align them to 112 × 112, as a packed set or as a list of points.

python jobs/align.py photos faces --workers 8 python jobs/align.py photos --points points.parquet
"""

from collections.abc import Sequence

from lafs_ray.cli.align import align_job
from lafs_ray.cli.main import run


def main(arguments: Sequence[str]) -> None:
    """Align photos."""
    align_job(str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main, "interrupted; the same command continues where it stopped"))
