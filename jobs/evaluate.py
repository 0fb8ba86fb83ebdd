"""Pair accuracy of a frozen network, next to its untrained self and to raw pixels.

python jobs/evaluate.py runs/lafs lfw.bin agedb_30.bin
"""

import argparse
from collections.abc import Sequence
from functools import partial

from lafs_ray.engine.job import run
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.report import decode_pairs, pair_accuracies
from lafs_ray.training.trained import load_embedder


def main(arguments: Sequence[str]) -> None:
    """Print a table for each pair file."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run")
    parser.add_argument("pairs", nargs="+", help="insightface pair files (.bin)")
    parser.add_argument("--colour-order", choices=["rgb", "bgr"], default="rgb")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    networks = {
        name: load_embedder(options.checkpoint, trained=trained).to(options.device)
        for name, trained in (("untrained network", False), ("trained network", True))
    }
    embeddings = {
        name: partial(apply_network, network, device=options.device)
        for name, network in networks.items()
    }
    for pairs in options.pairs:
        images, same = decode_pairs(pairs, options.colour_order)
        print(f"{pairs}: {len(same)} pairs, 10-fold accuracy")
        for row in pair_accuracies(images, same, embeddings):
            print(f"  {row}")


if __name__ == "__main__":
    raise SystemExit(run(main))
