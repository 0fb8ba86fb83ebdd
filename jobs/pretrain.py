"""Pretrain a face transformer on unlabeled faces (LAFS or DINO-face).

python jobs/pretrain.py configs/pretrain/lafs.yaml data.path=train.rec landmarks.weights=…
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs pretrain` with these arguments."""
    execute("pretrain", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("pretrain"))
