"""Arguments of the commands that write sets of faces."""

from __future__ import annotations

from argparse import ArgumentParser


def pack(parser: ArgumentParser) -> None:
    """Add the arguments of packing, verification and inspection."""
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        metavar="PATH",
        help="sources (.rec, .tar, Parquet, folders, lists), then the folder of the set",
    )
    add("--size", type=int, default=112, metavar="PIXELS", help="side of the images in pixels (default 112)")
    add("--resize", action="store_true", help="resize square images of another size")
    add("--landmarks", metavar="LIST", help="list (path, x1, y1 … x5, y5) to align the images of a folder")
    add("--exclude", metavar="LIST", help="records to leave out: shard, key (.csv, .parquet), as lafs audit writes")
    add("--check", action="store_true", help="decode every image")
    add("--align", action="store_true", help="detect the faces of photos and align them")
    _add_alignment(parser)
    _add_set(parser)
    add("--max-bad", default="100", metavar="N", help="records that may be left out: 100 (default), or a share: 1%%")
    add("--verify", metavar="SET", help="check a packed set against its manifest")
    add("--inspect", metavar="PATH", help="describe a set of .rec, .tar or Parquet files")
    add("--sheet", metavar="FILE", help="with --inspect or --align: file of the contact sheet")
    add("--force", action="store_true", help="replace the contact sheet and the report")


def pairs(parser: ArgumentParser) -> None:
    """Add the arguments of making pairs."""
    add = parser.add_argument
    add("faces", help="a folder of images for --list, or a labeled set as data.path for --pairs")
    add("out", help="the pair file (.bin)")
    add("--list", metavar="PAIRS.txt", help="pairs in the format of LFW's pairs.txt")
    add("--pairs", type=int, metavar="N", help="pairs to draw from a labeled set, half of them of one identity")
    add("--folds", type=int, default=10, metavar="N", help="with --pairs: folds without a common identity (default 10)")
    add("--seed", type=int, default=0, help="with --pairs: of the choice (default 0)")
    add("--force", action="store_true", help="replace OUT")


def align(parser: ArgumentParser) -> None:
    """Add the arguments of alignment."""
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="folders, lists, .tar or .rec of photos, then the folder of the set")
    add("--points", metavar="LIST", help="write the points of one source instead of a set: .csv or .parquet")
    _add_alignment(parser)
    add("--sheet", metavar="FILE", help="picture of some photos of each kind (.png)")
    add("--force", action="store_true", help="replace the files of --points, --report and --sheet")
    _add_set(parser)


def _add_alignment(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--detector", metavar="NAME", help="mtcnn (default), or the path of a YuNet .onnx file")
    add("--faces", choices=["largest", "central", "every"], help="of several in a photo (default largest)")
    add("--min-eyes", type=float, metavar="PX", help="least distance of the eyes (default 10)")
    add("--min-score", type=float, metavar="S", help="least score of a face (default 0.8)")
    add("--report", metavar="LIST", help="what became of every photo, as .csv or .parquet")


def _add_set(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", type=int, metavar="N", help="number of shards (default: derived from --shard-size)")
    add("--shard-size", default="1G", metavar="BYTES", help="approximate size of a shard (default 1G)")
    add("--seed", type=int, default=0, metavar="N", help="of the shuffled order (default 0)")
    add("--workers", type=int, default=0, metavar="N", help="concurrent Ray tasks; 0: this process (default)")
    add("--memory", default="2G", metavar="BYTES", help="for images, all workers together (default 2G)")
    add("--scratch", metavar="FOLDER", help="folder for temporary files, as large as the set (default: in OUT)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="of the sources (default rgb)")
    add("--quality", type=int, default=95, metavar="N", help="of re-encoded JPEGs (default 95)")


def cache_landmarks(parser: ArgumentParser) -> None:
    """Add the arguments of the landmark cache."""
    add = parser.add_argument
    add("checkpoint", nargs="?", help="the later landmarks.weights: a stage-1 run or checkpoint")
    add("faces", help="the set, as data.path")
    add("--out", metavar="FOLDER", help="for landmarks.cache (default: a folder beside the set)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="as data.color_order (default rgb)")
    add("--workers", type=int, default=0, metavar="N", help="Ray actors; 0: this process (default)")
    add("--device", default="cpu", help="cpu, or cuda: a GPU for each worker (default cpu)")
    add("--max-bad", default="100", metavar="N", help="tolerated damaged records: 100 (default), or a share: 1%%")
    add("--from", dest="points", metavar="POINTS.parquet", help="instead of a checkpoint: landmarks of another tool")
    add("--tool", metavar="NAME", help="with --from: its name, unless the file's metadata has it")
    add("--tool-version", metavar="VERSION", help="with --from: its version")
    add("--images", metavar="FOLDER", help="with --from: the image files that the column path names")
    add(
        "--max-missing",
        type=int,
        default=0,
        metavar="N",
        help="with --from: records that may have none and get the mean (default 0)",
    )


def landmark_error(parser: ArgumentParser) -> None:
    """Add the arguments of the error of a landmark CNN."""
    add = parser.add_argument
    add("checkpoint", help="a run or checkpoint with a landmark CNN")
    add("faces", nargs="?", help="the set, as data.path (default: what the run has held back)")
    add("landmarks", nargs="?", help="folder of its cached landmarks")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="as data.color_order (default rgb)")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")


def make_faces(parser: ArgumentParser) -> None:
    """Add the arguments of synthetic faces."""
    add = parser.add_argument
    add("out", help="the output folder")
    add("--identities", type=int, default=500, metavar="N", help="identities of the training set (default 500)")
    add("--images", type=int, default=20, metavar="N", help="images of each identity (default 20)")
    add("--seed", type=int, default=0, metavar="N", help="of identities, poses and light (default 0)")
    add("--shards", type=int, default=1, metavar="N", help="shards of the training set (default 1)")
    add("--workers", type=int, default=1, metavar="N", help="processes that render (default 1)")
    add("--landmarks", metavar="LAYOUT", help="write true landmarks: facemesh (196), or a square number of a grid")
    add("--pairs", type=int, default=0, metavar="N", help="verification pairs of other identities (default 0: none)")
    add("--pair-identities", type=int, default=100, metavar="N", help="identities of these pairs (default 100)")
