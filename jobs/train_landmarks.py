"""Train a landmark CNN on given landmarks, without identity labels: in the place of stage 1.

python jobs/make_faces.py faces --identities 5000 --images 8 --landmarks facemesh
python jobs/cache_landmarks.py --from faces/landmarks-facemesh.parquet faces --out faces/landmarks
python jobs/train_landmarks.py configs/landmarks/cpu.yaml data.path=faces landmarks.cache=faces/landmarks
python jobs/landmark_error.py runs/landmarks
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs train-landmarks` with these arguments."""
    execute("train-landmarks", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("train-landmarks"))
