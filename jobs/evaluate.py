"""Judge a frozen network on pairs and identities.

python jobs/evaluate.py runs/lafs lfw.bin agedb_30.bin --identities val.rec --k 1 5
"""

import argparse
from collections.abc import Sequence

from lafs_ray.engine.evaluate import judge_identities, judge_pairs, local_embedding
from lafs_ray.engine.job import run
from lafs_ray.evaluation.report import table
from lafs_ray.training.trained import read_trained


def main(arguments: Sequence[str]) -> None:
    """Print a table for each input."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run")
    parser.add_argument("pairs", nargs="*", help="insightface pair files (.bin)")
    parser.add_argument("--identities", nargs="*", default=[], help="labelled sets (.rec)")
    parser.add_argument("--k", nargs="+", type=int, default=[1], help="neighbours asked")
    parser.add_argument("--baselines", action="store_true", help="raw pixels, untrained network")
    parser.add_argument("--colour-order", choices=["rgb", "bgr"], default="rgb")
    parser.add_argument("--range", choices=["training", "reference"], default="training")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    trained = read_trained(options.checkpoint)
    embeddings = [
        local_embedding(name, trained.embedder(trained=flag), options.device, options.range)
        for name, flag in (("untrained network", False), ("trained network", True))
        if flag or options.baselines
    ]
    order = options.colour_order
    for uri in options.pairs:
        print(f"{uri}: 10-fold pair verification")
        rows = judge_pairs(uri, embeddings, colour_order=order, raw_pixels=options.baselines)
        print("\n".join(table(rows)))
    for path in options.identities:
        print(f"{path}: nearest neighbours, leave-one-out")
        print("\n".join(table(judge_identities(path, embeddings, options.k, colour_order=order))))


if __name__ == "__main__":
    raise SystemExit(run(main))
