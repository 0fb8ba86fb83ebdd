"""Command line of `jobs/pack.py`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lafs_ray.cli.align_options import add_align_arguments, pack_aligned, used_align_arguments
from lafs_ray.cli.main import require_persistent_path
from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.packing.images import ImageRules
from lafs_ray.data.packing.inspection import inspect_faces
from lafs_ray.data.packing.integrity import verify_set
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import apply_in_process, count_of, pack_faces
from lafs_ray.engine.ray_tasks import apply_on_ray
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# The manifest lists more of the records left out.
_MAX_ERRORS = 10


def pack_job(description: str, arguments: Sequence[str]) -> None:
    """Pack, verify or inspect a set.

    Raises:
        UserError: the arguments or the data are wrong, or the verification fails.
    """
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    options = _parse(description, arguments)
    apply = apply_in_process if options.workers == 0 else apply_on_ray(options.workers)
    if options.verify is not None:
        show(verify_set(options.verify, apply))
    elif options.inspect is not None:
        for line in inspect_faces(options.inspect, sheet=options.sheet, check_all=options.check, force=options.force):
            show(line)
    else:
        require_persistent_path("OUT", options.paths[-1])
        if options.align:
            pack_aligned(options, pack_options(options), apply)
            return
        rules = ImageRules(options.size, options.resize, options.quality, options.check)
        packing = replace(pack_options(options), landmarks=options.landmarks, rules=rules, max_bad=options.max_bad)
        manifest = pack_faces(packing, apply)
        num_bad, errors = manifest.left_out["images"], manifest.left_out["first"][:_MAX_ERRORS]
        show(
            f"{manifest.images} images of {manifest.identities} identities in "
            f"{count_of(len(manifest.shards), 'shard')}; {manifest.encoded} re-encoded, {num_bad} "
            "left out"
        )
        for line in errors:
            show(f"  left out: {line}")
        if num_bad > len(errors):
            show(f"  and {num_bad - len(errors)} more, see manifest.json")


def add_set_arguments(add: Callable[..., Any]) -> None:
    """Add the arguments that any packed set has, by a parser's `add_argument`."""
    add("--shards", type=int, help="number of shards (default: derived from --shard-size)")
    add("--shard-size", default="1G", help="approximate size of a shard (default 1G)")
    add("--seed", type=int, default=0, help="of the shuffled order (default 0)")
    add("--workers", type=int, default=0, help="concurrent Ray tasks; 0: this process (default)")
    add("--memory", default="2G", help="for images, all workers together (default 2G)")
    add("--scratch", help="folder for temporary files, as large as the set (default: in OUT)")
    add("--color-order", choices=["rgb", "bgr"], default="rgb", help="of the sources")
    add("--quality", type=int, default=95, help="of re-encoded JPEGs (default 95)")


def pack_options(options: argparse.Namespace) -> PackOptions:
    """Return the options of a packing from the arguments of `add_set_arguments`.

    Raises:
        ConfigError: a size has another form.
    """
    return PackOptions(
        sources=tuple(options.paths[:-1]),
        out=options.paths[-1],
        num_shards=options.shards,
        shard_bytes=num_bytes("--shard-size", options.shard_size),
        seed=options.seed,
        color_order=options.color_order,
        rules=ImageRules(quality=options.quality),
        memory_bytes=num_bytes("--memory", options.memory),
        workers=options.workers,
        scratch=options.scratch,
    )


def _parse(description: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="sources, then the output folder")
    add("--size", type=int, default=112, help="side of the images in pixels (default 112)")
    add("--resize", action="store_true", help="resize square images of another size")
    add("--landmarks", help="list (path, x1, y1 … x5, y5) to align the images of a folder")
    add("--check", action="store_true", help="decode every image")
    add("--align", action="store_true", help="detect the faces of photos and align them")
    add_align_arguments(add)
    add_set_arguments(add)
    add("--max-bad", type=int, default=100, help="records that may be left out (default 100)")
    add("--verify", metavar="SET", help="check a packed set against its manifest")
    add("--inspect", metavar="PATH", help="describe .rec files")
    add("--sheet", help="with --inspect or --align: file of the contact sheet")
    add("--force", action="store_true", help="replace the contact sheet and the report")
    options = parser.parse_intermixed_args(arguments)
    modes = (options.verify is not None) + (options.inspect is not None)
    if modes > 1 or (modes and options.paths) or (not modes and len(options.paths) < 2):
        raise ConfigError(
            "arguments",
            found=" ".join(arguments) or "none",
            expected="SOURCE … OUT, or --verify SET, or --inspect PATH",
            fix="python jobs/pack.py --help",
        )
    _check_align(options, is_packing=not modes)
    return options


def _check_align(options: argparse.Namespace, *, is_packing: bool) -> None:
    given = used_align_arguments(options)
    if options.align:
        other = {"--resize": options.resize, "--landmarks": options.landmarks, "--size": options.size != IMAGE_SIZE}
        given = [name for name, is_given in other.items() if is_given]
        if not is_packing:
            given.append("--verify or --inspect")
    if given:
        expected = f"only photos and the folder of the set: faces are aligned to {IMAGE_SIZE}x{IMAGE_SIZE}"
        raise ConfigError(
            "arguments",
            found=f"{', '.join(given)} {'with' if options.align else 'without'} --align",
            expected=expected if options.align else "an argument of --align together with it",
            fix=f"remove {given[0]}" + ("" if options.align else ", or add --align"),
        )


def num_bytes(name: str, text: str) -> int:
    """Parse a size such as 512M or 1.5G (powers of 1024).

    Raises:
        ConfigError: it has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        expected = "a number with K, M, G or T, such as 512M"
        raise ConfigError(name, found=repr(text), expected=expected, fix=f"correct {name}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
