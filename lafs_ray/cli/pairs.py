"""`lafs pairs`: a verification file from LFW's list and a folder, or from a labeled set."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.io import filesystem
from lafs_ray.data.make_pairs import drawn_pairs, listed_pairs
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show


def make_pairs(options: Namespace) -> None:
    """Write the pair file and print its counts.

    Raises:
        UserError: the arguments, the list or the faces are wrong.
    """
    if (options.list is None) == (options.pairs is None):
        raise ConfigError(
            "arguments",
            found="both --list and --pairs" if options.list else "neither --list nor --pairs",
            expected="--list pairs.txt for a folder of images, or --pairs N for a labeled set",
            fix="see the examples of `lafs pairs --help`",
        )
    require_persistent_path("OUT", options.out)
    inputs = [options.faces, *([options.list] if options.list else [])]
    filesystem.require_output(options.out, force=options.force, inputs=inputs)
    if options.list is not None:
        pairs = listed_pairs(options.faces, options.list)
    else:
        pairs = drawn_pairs(options.faces, options.pairs, options.folds, options.seed)
    write_pairs(options.out, pairs.images, pairs.same)
    show(f"{options.out}: {len(pairs.same)} pairs, {int(pairs.same.sum())} of one identity")
