"""The command line of packing, and its tasks on Ray."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from lafs_ray.cli.main import require_persistent_path
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.inspection import inspect_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import apply_in_process, pack_faces
from lafs_ray.data.packing.verification import verify_set
from lafs_ray.engine.ray_tasks import apply_on_ray
from lafs_ray.errors import ConfigError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Records left out that are named on the screen; the manifest has more of them.
_NAMED = 10


def pack_job(description: str, arguments: Sequence[str]) -> None:
    """Pack, verify or inspect, as the command line says.

    Raises:
        UserError: a mistake in the arguments or the data; a set that fails its verification.
    """
    options = _parse(description, arguments)
    apply = apply_in_process if options.workers == 0 else apply_on_ray(options.workers)
    if options.verify is not None:
        verify_set(options.verify, apply, print)
    elif options.inspect is not None:
        inspect_faces(options.inspect, sheet=options.sheet, every=options.check, say=print)
    else:
        require_persistent_path("OUT", options.paths[-1])
        manifest = pack_faces(_pack_options(options), apply, print)
        count = manifest.left_out["images"]
        print(  # noqa: T201
            f"{manifest.images} images of {manifest.identities} identities in "
            f"{len(manifest.shards)} shards, {manifest.encoded} encoded anew, {count} left out"
        )
        named = manifest.left_out["first"][:_NAMED]
        for line in named:
            print(f"  left out: {line}")  # noqa: T201
        if count > len(named):
            print(f"  and {count - len(named)} more, see manifest.json")  # noqa: T201


def _parse(description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="sources, and last the folder of the set")
    add("--shards", type=int, help="number of shards (default: by --shard-size)")
    add("--shard-size", default="1G", help="size of a shard, about (default 1G)")
    add("--seed", type=int, default=0, help="of the order (default 0)")
    add("--workers", type=int, default=0, help="Ray tasks at a time; 0: this process (default)")
    add("--memory", default="2G", help="for images in memory, all workers together (default 2G)")
    add("--scratch", help="folder for temporary files as large as the set (default: in the set)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="of the sources")
    add("--size", type=int, default=112, help="side of the images in pixels (default 112)")
    add("--resize", action="store_true", help="resize square images of another size")
    add("--landmarks", help="list (path, x1, y1 … x5, y5) to align a folder's images by")
    add("--quality", type=int, default=95, help="of JPEGs encoded anew (default 95)")
    add("--check", action="store_true", help="decode every image")
    add("--max-bad", type=int, default=100, help="records that may be left out (default 100)")
    add("--verify", metavar="SET", help="compare a packed set with its manifest")
    add("--inspect", metavar="PATH", help="say what .rec files hold")
    add("--sheet", help="with --inspect: where the contact sheet goes (default: contact_sheet.png)")
    options = parser.parse_intermixed_args(arguments)
    modes = (options.verify is not None) + (options.inspect is not None)
    if modes > 1 or (modes and options.paths) or (not modes and len(options.paths) < 2):
        raise ConfigError(
            "arguments",
            found=" ".join(arguments) or "none",
            expected="SOURCE … OUT, or --verify SET, or --inspect PATH",
            fix="python jobs/pack.py --help",
        )
    return options


def _pack_options(options: argparse.Namespace) -> PackOptions:
    return PackOptions(
        sources=tuple(options.paths[:-1]),
        out=options.paths[-1],
        num_shards=options.shards,
        shard_bytes=num_bytes("--shard-size", options.shard_size),
        seed=options.seed,
        color_order=options.color_order,
        landmarks=options.landmarks,
        rules=ImageRules(options.size, options.resize, options.quality, options.check),
        max_bad=options.max_bad,
        memory_bytes=num_bytes("--memory", options.memory),
        workers=options.workers,
        scratch=options.scratch,
    )


def num_bytes(name: str, text: str) -> int:
    """The number of bytes that a text such as 512M or 1.5G means.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        expected = "a number with K, M, G or T, such as 512M"
        raise ConfigError(name, found=repr(text), expected=expected, fix=f"correct {name}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
