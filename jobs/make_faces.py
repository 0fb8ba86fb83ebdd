"""Render synthetic faces: a training set, verification pairs of other identities, contact sheet.

python jobs/make_faces.py OUT --identities 500 --images 20 --workers 2 --pairs 3000
"""

import argparse
import logging
import time
from collections.abc import Sequence

import cv2

from lafs_ray.cli.main import run
from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.synthetic import datasets


def main(arguments: Sequence[str]) -> None:
    """Write train*.rec, property, contact_sheet.png and, with --pairs, pairs.bin into OUT."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out")
    defaults = {"identities": 500, "images": 20, "seed": 0, "shards": 1, "workers": 1}
    for name, default in {**defaults, "pairs": 0, "pair-identities": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args(arguments)
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    identities, images, start = args.identities, args.images, time.perf_counter()
    common = {"seed": args.seed, "workers": args.workers}
    size = {"num_identities": identities, "images_per_identity": images, "num_shards": args.shards}
    datasets.write_faces(args.out, **size, **common)
    if args.pairs:
        others = range(identities, identities + args.pair_identities)
        pairs = filesystem.join(args.out, "pairs.bin")
        datasets.write_pair_file(pairs, num_pairs=args.pairs, identities=others, **common)
    num_images = identities * images + 2 * args.pairs
    rate = num_images / (time.perf_counter() - start) * 60
    sheet = datasets.contact_sheet(args.seed, range(min(identities, 12)), min(images, 10))
    with filesystem.atomic_write(filesystem.join(args.out, "contact_sheet.png")) as file:
        file.write(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())
    show(f"{num_images} images in {args.out}: {rate:.0f} images/minute")


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; the same command starts over"))
