"""The alignment check on sets of one's own: its mean, and how far samples of 30 images differ.

python -m benchmarks.alignment faces/train.rec photos/ --images 1000
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.alignment_check import alignment_from, correlations_of
from lafs_ray.data.images import decode_image
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.data.record_index import spread
from lafs_ray.errors import DataError

_SAMPLES, _SIZE = 1000, 30


def main() -> None:
    """Print a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", help="of jobs/pack.py: .rec, folders or lists")
    parser.add_argument("--images", type=int, default=1000, help="most images of each (default 1000)")
    options = parser.parse_args()
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    print("images   mean   sd     samples of 30: lowest, highest 0.1 %   verdicts   set")
    for path in options.sources:
        report(path, np.array([correlations_of(image) for image in images_of(path, options.images)]))


def images_of(path: str, most: int) -> Iterator[NDArray[np.uint8]]:
    """Yield an evenly spaced sample of a source; images that are not square are squeezed."""
    source = open_source(path)
    for number in spread(source.num_records, most).tolist():
        (row,) = source.read(number, number + 1)
        try:
            image = decode_image(row.image, color_order="rgb", size=None)
        except DataError:
            continue
        yield np.asarray(cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA), np.uint8)


def report(path: str, found: NDArray[np.float64]) -> None:
    """Print the mean of a set's images, and of random samples of 30 of them."""
    generator = np.random.default_rng(0)
    samples = [alignment_from(found[generator.choice(len(found), _SIZE)]) for _ in range(_SAMPLES)]
    low, high = np.percentile([sample.means[0] for sample in samples], [0.1, 99.9])
    aligned = np.mean([bool(sample.is_aligned) for sample in samples])
    print(
        f"{len(found):6}   {found[:, 0].mean():5.2f}  {found[:, 0].std():5.2f}   {low:5.2f} {high:5.2f}   "
        f"{aligned:.1%} aligned   {path}"
    )


if __name__ == "__main__":
    main()
