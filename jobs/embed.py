"""Embed a folder of aligned faces, or a .rec, into a Parquet file.

python jobs/embed.py runs/lafs faces/train.rec embeddings.parquet --flip
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs embed` with these arguments."""
    execute("embed", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("embed"))
