"""Arguments of the commands that use or convert a trained network."""

from __future__ import annotations

from argparse import ArgumentParser

_SOURCE = "a run directory, a checkpoint, or a weights file"


def evaluate(parser: ArgumentParser) -> None:
    """Add the arguments of an evaluation."""
    add = parser.add_argument
    add("checkpoint", help=_SOURCE)
    add("pairs", nargs="*", help="insightface pair files (.bin)")
    add("--resize", action="store_true", help="scale square images of pair files to 112x112, bicubic")
    add("--identities", nargs="+", default=[], metavar="SET", help="labeled sets (.rec): nearest neighbors")
    add("--k", dest="ks", nargs="+", type=int, default=[1], metavar="N", help="neighbors for k-NN (default 1)")
    add("--templates", nargs="+", default=[], metavar="FOLDER", help="IJB-B/C in insightface's layout")
    add("--identification", nargs="+", default=[], metavar="FOLDER", help="1:N protocols: IJB-B/C, TinyFace or lists")
    add(
        "--modes",
        nargs="+",
        default=["F1N1D1"],
        help="test modes of both: F flip, N keep norm, D detector score, each 0 or 1 (default F1N1D1)",
    )
    add("--baselines", action="store_true", help="also raw pixels and the untrained network")
    add("--whiten", metavar="FACES", help="add whitened rows, fitted on these faces without labels")
    add_whitening(parser)
    add_color_order(parser, ".bin and .rec")
    add(
        "--range",
        dest="pixel_range",
        choices=["training", "reference"],
        default="training",
        help="of the network's input: training, -1…1 (default); reference, -0.5…0.5 as the released code evaluates",
    )
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where the network computes (default cpu)")
    add("--workers", type=int, default=0, metavar="N", help="Ray workers that embed; 0: this process (default)")
    add("--out", metavar="FOLDER", help="folder or URI for results.json and ROC pictures")
    add("--force", action="store_true", help="replace the files of an earlier evaluation")


def whiten(parser: ArgumentParser) -> None:
    """Add the arguments of whitening a network."""
    add = parser.add_argument
    add("checkpoint", help=_SOURCE)
    add("faces", help="a folder of aligned image files, or .rec files; at most 10,000 of them are used")
    add("out", help="the weights file (.safetensors)")
    add_whitening(parser)
    add_color_order(parser, "the images")
    add("--force", action="store_true", help="replace OUT")


def add_whitening(parser: ArgumentParser) -> None:
    """Add the options of a whitening."""
    add = parser.add_argument
    add(
        "--readout",
        choices=["class", "mean", "all"],
        default="all",
        help="what is whitened: class token, mean of the other outputs, or all outputs side by side (default)",
    )
    add("--components", type=int, default=200, metavar="N", help="numbers of a whitened embedding (default 200)")
    add("--neighbors", action="store_true", help="learn from mined neighbors, where identities recur")


def add_color_order(parser: ArgumentParser, images: str) -> None:
    """Add the option of what images decode to."""
    shown = f"of {images}; a packed set knows its own (default rgb)"
    parser.add_argument("--color-order", choices=["rgb", "bgr"], default="rgb", help=shown)


def inputs(parser: ArgumentParser) -> None:
    """Add the arguments of trying inputs."""
    add = parser.add_argument
    add("checkpoint", help=f"{_SOURCE}, or a published checkpoint (.pth)")
    add("pairs", help="insightface pair file (.bin)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="what the pair file decodes to (default rgb)")
    add("--landmarks", metavar="CHECKPOINT", help="stage-1 checkpoint with the landmark CNN, where it is missing")
    add("--grid", action="store_true", help="a published transformer was trained on grid patches")
    add("--device", default="cpu", help="where the network computes: cpu or cuda (default cpu)")


def embed(parser: ArgumentParser) -> None:
    """Add the arguments of embedding a set."""
    add = parser.add_argument
    add("checkpoint", help=_SOURCE)
    add("faces", help="a folder of image files, .rec files as data.path, or a pair file (.bin)")
    add("out", help="the Parquet file")
    add("--flip", action="store_true", help="add the mirror image's embedding")
    add_color_order(parser, "the images")
    add("--resize", action="store_true", help="scale square images to 112x112")
    add("--max-bad-records", default="100", metavar="N", help="tolerated damaged faces: 100 (default), or a share: 1%%")
    add("--device", default="cpu", help="where the network computes: cpu or cuda (default cpu)")
    add("--batch-size", type=int, default=64, metavar="N", help="faces at once (default 64)")
    add("--force", action="store_true", help="replace OUT")


def mine_neighbors(parser: ArgumentParser) -> None:
    """Add the arguments of mining neighbors."""
    add = parser.add_argument
    add("checkpoint", help=f"{_SOURCE}; best a file of lafs whiten")
    add(
        "faces",
        help="the set of the run, as data.path; of more than 200,000 faces (8,000,000 on a GPU) that many are compared",
    )
    add("out", help="the file of pairs (.safetensors), for neighbors.pairs")
    add(
        "--min-shared",
        type=int,
        default=8,
        metavar="N",
        help="neighbors, of 30, that both faces of a pair share (default 8); more give fewer but surer pairs",
    )
    add_color_order(parser, "the images")
    add("--max-bad-records", default="100", metavar="N", help="tolerated damaged faces: 100 (default), or a share: 1%%")
    add("--device", default="cpu", help="where to embed and compare: cpu or cuda (default cpu)")
    add("--force", action="store_true", help="replace OUT")


def export(parser: ArgumentParser) -> None:
    """Add the arguments of an export."""
    add = parser.add_argument
    add("checkpoint", help=_SOURCE)
    add("out", help="folder of the exported files")
    formats = "safetensors,timm,onnx,torch_export,huggingface"
    add("--formats", default="safetensors", metavar="NAMES", help=f"some of {formats} (default safetensors)")
    add("--license", metavar="ID", help="of the model card of huggingface, such as mit (default: not stated)")
    add("--data", metavar="TEXT", help="of the model card: what the network was trained on (default: not stated)")
    add(
        "--input",
        choices=["float32", "uint8"],
        default="float32",
        help="input of onnx and torch_export: NCHW in [-1, 1] (default), or NHWC pixels 0…255",
    )
    add("--force", action="store_true", help="overwrite existing files")


def convert(parser: ArgumentParser) -> None:
    """Add the arguments of a conversion."""
    add = parser.add_argument
    add("source", help="run, its checkpoint, weights file, published checkpoint")
    add("out", help=".safetensors: a weights file; .pth: published names")
    add(
        "--role",
        choices=["teacher", "student"],
        default="teacher",
        help="which network of a pretraining (default teacher)",
    )
    add("--landmarks", metavar="CHECKPOINT", help="stage-1 checkpoint with the landmark CNN to add")
    add("--heads", action="store_true", help="keep DINO head and class weight")
    add("--grid", action="store_true", help="trained on grid patches (DINO-face)")
    add(
        "--head-dim",
        type=int,
        metavar="WIDTH",
        help="width of an attention head (default: as recorded in the file; else of our size of these shapes; else 64)",
    )
    add("--force", action="store_true", help="overwrite OUT")
