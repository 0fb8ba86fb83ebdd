"""Tune the hyperparameters of a training run with Ray Tune; the same command continues.

python jobs/sweep.py configs/sweep/few_shot.yaml settings.data.path=train.rec
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs sweep` with these arguments."""
    execute("sweep", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("sweep"))
