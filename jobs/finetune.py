"""Train Part fViT on labeled faces: from scratch (stage 1), or from pretrained weights (stage 3).

python jobs/finetune.py configs/finetune/part_fvit.yaml data.path=train.rec python jobs/finetune.py
configs/finetune/few_shot.yaml data.path=train.rec start.transformer=…
"""

from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.cli.train import train_command
from lafs_ray.config.finetune import FinetuneConfig


def main(arguments: Sequence[str]) -> None:
    """Train with the configuration, or continue the run of that name."""
    train_command(FinetuneConfig, str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main))
