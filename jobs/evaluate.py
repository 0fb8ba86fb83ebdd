"""Evaluate a frozen network on pairs, identities, templates and in identification.

python jobs/evaluate.py runs/lafs lfw.bin agedb_30.bin --identities val.rec --templates ijb/IJBC
"""

import argparse
from collections.abc import Sequence

from lafs_ray.cli.evaluate import Request, evaluate
from lafs_ray.cli.main import run


def main(arguments: Sequence[str]) -> None:
    """Print a table for each input; write results.json and ROC pictures with --out."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    add = parser.add_argument
    add("checkpoint", help="a checkpoint, the folder of a run, or a weights file")
    add("pairs", nargs="*", help="insightface pair files (.bin)")
    add("--identities", nargs="+", default=[], help="labeled sets (.rec): nearest neighbors")
    add("--k", dest="ks", nargs="+", type=int, default=[1], help="neighbors for k-NN (1)")
    add("--templates", nargs="+", default=[], help="folders of IJB-B/C in insightface's layout")
    add("--identification", nargs="+", default=[], help="folders of 1:N protocols: IJB-B/C, TinyFace or lists")
    add("--modes", nargs="+", default=["F1N1D1"], help="F flip, N keep norm, D detector (F1N1D1)")
    add("--baselines", action="store_true", help="also raw pixels and the untrained network")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="of .bin and .rec (rgb)")
    add(
        "--range",
        dest="pixel_range",
        choices=["training", "reference"],
        default="training",
        help="of the network's input: -1…1, or -0.5…0.5 as the released code evaluates",
    )
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--workers", type=int, default=0, help="Ray workers that embed; 0: this process (0)")
    add("--out", help="folder or URI for results.json and ROC pictures")
    add("--force", action="store_true", help="replace the files of an earlier evaluation")
    evaluate(Request(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; nothing was written"))
