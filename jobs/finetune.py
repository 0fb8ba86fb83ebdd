"""Train Part fViT on labeled faces: from scratch (stage 1), or from pretrained weights (stage 3).

python jobs/finetune.py configs/finetune/part_fvit.yaml data.path=train.rec
python jobs/finetune.py configs/finetune/few_shot.yaml data.path=train.rec start.transformer=…
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs finetune` with these arguments."""
    execute("finetune", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("finetune"))
