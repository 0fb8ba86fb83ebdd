"""Pretrain a face transformer on unlabeled faces (LAFS or DINO-face).

python jobs/pretrain.py configs/pretrain/lafs.yaml data.path=train.rec landmarks.weights=…
"""

from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.cli.train import train_command
from lafs_ray.config.pretrain import PretrainConfig


def main(arguments: Sequence[str]) -> None:
    """Train with the configuration, or continue the run of that name."""
    train_command(PretrainConfig, str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main))
