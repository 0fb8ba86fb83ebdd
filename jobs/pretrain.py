"""Pretrain a face transformer on unlabelled faces (LAFS or DINO-face).

python jobs/pretrain.py configs/pretrain/lafs.yaml data.path=train.rec landmarks.weights=…
"""

from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.cli.train import start_job
from lafs_ray.config.pretrain import PretrainConfig


def main(arguments: Sequence[str]) -> None:
    """Train as the configuration says, or continue the run of that name."""
    start_job(PretrainConfig, str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main))
