"""Train Part fViT on labelled faces, landmark CNN and transformer end to end (stage 1).

python jobs/finetune.py configs/finetune/part_fvit.yaml data.path=train.rec
"""

from collections.abc import Sequence

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.engine.job import run
from lafs_ray.engine.launch import start_job


def main(arguments: Sequence[str]) -> None:
    """Train as the configuration says, or continue the run of that name."""
    start_job(FinetuneConfig, str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main))
