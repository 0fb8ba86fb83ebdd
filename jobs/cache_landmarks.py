"""Compute the landmarks of every face of a set once, for pretraining with landmarks.source=cached.

python jobs/cache_landmarks.py runs/part_fvit packed --workers 8
python jobs/pretrain.py configs/pretrain/lafs.yaml data.path=packed landmarks.source=cached \
    landmarks.weights=runs/part_fvit

With --from POINTS.parquet, the landmarks of another tool (docs/data.md):
python jobs/cache_landmarks.py --from points.parquet packed --out landmarks
python jobs/pretrain.py configs/pretrain/lafs.yaml data.path=packed landmarks.source=cached \
    landmarks.weights=null landmarks.cache=landmarks
"""

from collections.abc import Sequence

from lafs_ray.cli.cache_landmarks import cache_job
from lafs_ray.cli.main import run


def main(arguments: Sequence[str]) -> None:
    """Write the landmarks, or continue an earlier call."""
    cache_job(str(__doc__), arguments)


if __name__ == "__main__":
    raise SystemExit(run(main, "interrupted; the same command continues with the missing parts"))
