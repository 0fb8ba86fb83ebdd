"""Alignment of photos: how fast, how many faces are found, and how far their points are from reference points.

python -m benchmarks.align photos --detector mtcnn --points reference.csv

Speed: the photos at 250 × 250, one core. The whole job, from files to a packed set, against the detector's own calls on
the decoded photos. Times are of the processor, so other programs disturb them little; the least of the repeats counts.

Reference points: a CSV with a row for each photo, its name and x0, y0, x1, …; `--five` says which points, or means of
ranges of them, are the eyes, the nose and the corners of the mouth. The default is that of All-Age-Faces.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.aligning.photos import PhotoRules
from lafs_ray.data.aligning.session import AlignOptions, align_to_set
from lafs_ray.data.detection.attempts import FaceRules, find_faces
from lafs_ray.data.detection.backends import open_backend
from lafs_ray.data.detection.base import Detector, detector_of
from lafs_ray.data.images import decode_image
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.data.packing.source_factory import open_source

_SIDE = 250
_ALL_AGE_FACES = "19-24 25-30 13 31 37"

Photo = NDArray[np.uint8]


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder")
    parser.add_argument("--detector", default="mtcnn", help="mtcnn, or the path of a YuNet .onnx file")
    parser.add_argument("--points", help="CSV of reference points of some of the photos")
    parser.add_argument("--five", default=_ALL_AGE_FACES, help=f"numbers of the five points (default {_ALL_AGE_FACES})")
    parser.add_argument("--repeats", type=int, default=3, help="of the measurements of time (default 3; 0: none)")
    parser.add_argument("--timed", type=int, default=300, help="photos to time: repeats of fewer (default 300)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = read_photos(options.photos)
    detector = detector_of(open_backend(options.detector))
    found = {name: find_faces(detector, photo, FaceRules()).faces for name, photo in photos.items()}
    print(f"{sum(len(faces) > 0 for faces in found.values())} of {len(found)} photos with a face, {options.detector}")
    if options.points is not None:
        errors = errors_of(options.points, options.five, {name: faces.points for name, faces in found.items()})
        print(
            f"mean error of the five points {errors.mean():.2%} of the distance between the eyes, worst photo "
            f"{errors.max():.2%}, {len(errors)} photos"
        )
    if options.repeats:
        timed = list(itertools.islice(itertools.cycle(photos.values()), options.timed))
        print_times(timed, options.detector, detector, options.repeats)


def read_photos(folder: str) -> dict[str, Photo]:
    """Read the photos that decode, by their path in the folder."""
    source = open_source(folder)
    rows = source.read(0, source.num_records)
    prefix = source.uri.rstrip("/") + "/"
    return {
        row.name.removeprefix(prefix): decode_image(row.image, color_order="rgb", size=None)
        for row in rows
        if not row.error
    }


def errors_of(path: str, five: str, points: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean error of each photo with reference points, as a part of the distance between the eyes; [n].

    Args:
        path: of the reference points.
        five: numbers such as "19-24 25-30 13 31 37".
        points: found in each photo, [faces, 5, 2].
    """
    groups = [[int(number) for number in group.split("-")] for group in five.split()]
    errors = []
    with open(path, newline="") as file:
        for name, *values in list(csv.reader(file))[1:]:
            reference = np.array(values, float).reshape(-1, 2)
            expected = np.array([reference[group[0] : group[-1] + 1].mean(axis=0) for group in groups])
            distance = float(np.linalg.norm(expected[1] - expected[0]))
            if not len(points[name]):
                raise SystemExit(f"no face in {name}, which has reference points")
            errors.append(np.linalg.norm(points[name][0] - expected, axis=1).mean() / distance)
    return np.array(errors)


def print_times(photos: list[Photo], name: str, detector: Detector, repeats: int) -> None:
    """Print processor time per photo of the job and of the detector, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "photos"
        files.mkdir()
        for number, photo in enumerate(photos):
            cv2.imwrite(str(files / f"{number:06}.jpg"), _square(photo)[..., ::-1])
        squares = list(read_photos(str(files)).values())
        times: dict[str, list[float]] = {"detection": [], "detector": [], "job": []}
        options = AlignOptions(name, PhotoRules(FaceRules()))
        for repeat in range(repeats):
            pack = PackOptions((str(files),), f"{folder}/set-{repeat}")
            times["detection"].append(_seconds(lambda: [detector.detect(photo) for photo in squares]))
            times["detector"].append(_seconds(lambda: [find_faces(detector, one, FaceRules()) for one in squares]))
            times["job"].append(_seconds(lambda pack=pack: align_to_set(options, pack, apply_in_process)))  # type: ignore[misc]
    detection, searches, job = (min(found) / len(squares) for found in times.values())
    print(
        f"{_SIDE} × {_SIDE}, one core, {len(squares)} photos: {1000 * job:.1f} ms a photo from file to set, "
        f"{3600 / job:,.0f} an hour; load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(
        f"one detection {1000 * detection:.1f} ms: ratio of the job {job / detection:.2f}; with second searches and "
        f"second passes over the points {1000 * searches:.1f} ms: ratio {job / searches:.2f}"
    )


def _seconds(action: Callable[[], object]) -> float:
    """Return the processor time of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def _square(photo: Photo) -> Photo:
    """Scale a photo to fit 250 × 250, gray where it does not reach."""
    height, width = photo.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    square = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return square


if __name__ == "__main__":
    main()
