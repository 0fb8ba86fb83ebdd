"""Make generated faces: a training set, verification pairs of other people, and a contact sheet.

python jobs/make_faces.py OUT --identities 500 --images 20 --workers 2 --pairs 3000
"""

import argparse
import time
from collections.abc import Sequence

import cv2

from lafs_ray.cli.main import run
from lafs_ray.data.io import filesystem
from lafs_ray.synthetic import datasets


def main(arguments: Sequence[str]) -> None:
    """Write OUT/train*.rec, OUT/property, OUT/contact_sheet.png and, if asked, OUT/pairs.bin."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out")
    defaults = {"identities": 500, "images": 20, "seed": 0, "shards": 1, "workers": 1}
    for name, default in {**defaults, "pairs": 0, "pair-identities": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args(arguments)
    people, images, start = args.identities, args.images, time.perf_counter()
    common = {"seed": args.seed, "workers": args.workers, "report": print}
    size = {"num_identities": people, "images_per_identity": images, "num_shards": args.shards}
    datasets.write_faces(args.out, **size, **common)
    if args.pairs:
        size = {"num_pairs": args.pairs, "identities": range(people, people + args.pair_identities)}
        datasets.write_pair_file(filesystem.join(args.out, "pairs.bin"), **size, **common)
    num_images = people * images + 2 * args.pairs
    rate = num_images / (time.perf_counter() - start) * 60
    sheet = datasets.contact_sheet(args.seed, range(min(people, 12)), min(images, 10))
    with filesystem.atomic_write(filesystem.join(args.out, "contact_sheet.png")) as file:
        file.write(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())
    print(f"{num_images} images in {args.out}: {rate:.0f} images/minute")


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; the same command begins anew"))
