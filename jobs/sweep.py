"""Tune the hyperparameters of a training run with Ray Tune; the same command continues.

python jobs/sweep.py configs/sweep/few_shot.yaml settings.data.path=train.rec
"""

from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.cli.sweep import start_sweep


def main(arguments: Sequence[str]) -> None:
    """Run what is left of the sweep; write its table, plots and the winner's YAML."""
    start_sweep(str(__doc__), arguments)


if __name__ == "__main__":
    message = "interrupted; the table shows the results so far, and the same command continues"
    raise SystemExit(run(main, interrupted=message))
