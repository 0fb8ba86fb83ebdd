"""Pack faces into globally shuffled shards that stream fast; verify a set; inspect .rec files.

python jobs/pack.py faces_emore/train.rec packed --workers 8
python jobs/pack.py photos/ more.csv packed --landmarks photos.csv
python jobs/pack.py --verify packed
python jobs/pack.py --inspect faces_emore/train.rec
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs pack` with these arguments."""
    execute("pack", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("pack"))
