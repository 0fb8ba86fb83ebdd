"""`lafs make-faces`: a synthetic training set with verification pairs."""

from __future__ import annotations

import logging
import time
from argparse import Namespace

import cv2

from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.synthetic import datasets, landmark_table
from lafs_ray.synthetic.landmarks import layout_positions


def make_faces(options: Namespace) -> None:
    """Write train*.rec, property, contact_sheet.png and, if requested, pairs.bin and landmarks-*.parquet into OUT."""
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    identities, images, start = options.identities, options.images, time.perf_counter()
    common = {"seed": options.seed, "workers": options.workers}
    size = {"num_identities": identities, "images_per_identity": images, "num_shards": options.shards}
    if options.landmarks is not None:
        layout_positions(options.landmarks)
    datasets.write_faces(options.out, **size, **common)
    if options.landmarks is not None:
        landmark_table.write_landmarks(options.out, options.landmarks, images_per_identity=images, **common)
    if options.pairs:
        others = range(identities, identities + options.pair_identities)
        pairs = filesystem.join(options.out, "pairs.bin")
        datasets.write_pair_file(pairs, num_pairs=options.pairs, identities=others, **common)
    num_images = identities * images + 2 * options.pairs
    rate = num_images / (time.perf_counter() - start) * 60
    sheet = datasets.contact_sheet(options.seed, range(min(identities, 12)), min(images, 10))
    with filesystem.atomic_write(filesystem.join(options.out, "contact_sheet.png")) as file:
        file.write(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())
    show(f"{num_images} images in {options.out}: {rate:.0f} images/minute")
