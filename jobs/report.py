"""Report a run: metric curves, landmarks on faces and pair accuracy, in one folder.

python jobs/report.py demo/runs/lafs demo/faces/train.rec demo/faces/pairs.bin demo/report
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs report` with these arguments."""
    execute("report", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("report"))
