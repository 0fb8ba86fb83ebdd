"""Make a verification file (.bin) from LFW's list and a folder, or from a labeled set.

python jobs/pairs.py lfw lfw.bin --list pairs.txt
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs pairs` with these arguments."""
    execute("pairs", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("pairs"))
