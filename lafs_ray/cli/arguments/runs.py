"""Arguments of the commands about runs, settings and the command line itself."""

from __future__ import annotations

from argparse import ArgumentParser

from lafs_ray.cli.arguments.networks import add_color_order, add_whitening

SHELLS = ("bash", "zsh", "fish")


def status(parser: ArgumentParser) -> None:
    """Add the arguments of a status."""
    parser.add_argument("run", help="the folder of a run or of a sweep, a path or a URI")
    parser.add_argument("--json", action="store_true", help="all fields, as JSON")


def report(parser: ArgumentParser) -> None:
    """Add the arguments of a report."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs, shown beside each other; or of one sweep")
    add("--faces", metavar="SET", help="faces to draw on, as data.path (default: the first run's training set)")
    add("--pairs", metavar="FILE", help="pair file (.bin) to evaluate (default: online_eval.pairs of the first run)")
    add("--whiten", metavar="SET", help="show the networks whitened as well; fitted on these faces, without labels")
    add_whitening(parser)
    add_color_order(parser, "faces and pairs")
    add("--out", default="report.html", metavar="FILE", help="the page (default report.html)")
    add("--force", action="store_true", help="replace an earlier report")


def audit(parser: ArgumentParser) -> None:
    """Add the arguments of an audit."""
    add = parser.add_argument
    add("embeddings", help="Parquet file of the training set, from lafs embed")
    add("--against", nargs="+", default=[], metavar="PARQUET", help="test sets, embedded by the same network")
    add("--out", required=True, metavar="FOLDER", help="for the page, the findings and the list to leave out")
    add("--no-faces", action="store_true", help="do not read the pictures: no copies, no sheets")
    add("--exact", action="store_true", help="compare all vectors, however many there are")
    add("--scratch", metavar="FOLDER", help="for vectors and index; with --workers on several machines, a shared one")
    add("--workers", type=int, default=0, metavar="N", help="Ray tasks that search; 0: this process (default)")
    add("--force", action="store_true", help="replace the files of an earlier audit")


def config(parser: ArgumentParser) -> None:
    """Add the arguments of the list of settings."""
    parser.add_argument("key", nargs="?", default="", help="a setting, a section, or a part of a name (default: all)")
    parser.add_argument(
        "--job",
        choices=["pretrain", "finetune", "landmarks", "sweep"],
        help="settings of this job only (default: all jobs)",
    )
    parser.add_argument("--presets", action="store_true", help="list the presets instead")


def completion(parser: ArgumentParser) -> None:
    """Add the arguments of shell completion."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")
