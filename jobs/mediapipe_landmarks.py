"""Find landmarks of aligned faces with MediaPipe, for jobs/cache_landmarks.py --from; runs in .venv-mediapipe.

make mediapipe-environment
.venv-mediapipe/bin/python jobs/mediapipe_landmarks.py packed points --workers 2
python jobs/cache_landmarks.py --from points packed --out landmarks
"""

import argparse
from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.data.io import filesystem
from lafs_ray.data.mediapipe_landmarks import find_landmarks
from lafs_ray.messages import show


def main(arguments: Sequence[str]) -> None:
    """Write Parquet files of the landmarks of a .rec, a packed set or a folder of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", help="aligned faces: a set as data.path, or a folder of images")
    parser.add_argument("out", help="folder for the Parquet files; an interrupted job continues there")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--color-order", choices=["rgb", "bgr"], default="rgb", help="as data.color_order")
    parser.add_argument(
        "--count", type=int, default=196, help="landmarks of a face: 196, or fewer that lie far apart (default 196)"
    )
    options = parser.parse_args(arguments)
    faces, out = filesystem.absolute(options.faces), filesystem.absolute(options.out)
    found = find_landmarks(faces, out, color_order=options.color_order, workers=options.workers, count=options.count)
    show(f"{options.out}: landmarks of {found.found:,} of {found.faces:,} faces")


if __name__ == "__main__":
    raise SystemExit(run(main, "interrupted; the same command continues with the missing files"))
