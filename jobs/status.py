"""Status of a run: state, step, loss, speed, time left, checkpoint, warnings, evaluation.

python jobs/status.py runs/lafs          # or s3://bucket/runs/lafs; --json for programs
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs status` with these arguments."""
    execute("status", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("status"))
