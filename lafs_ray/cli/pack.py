"""`lafs pack`: pack, verify or inspect a set."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from dataclasses import replace

from lafs_ray.cli.align_options import pack_aligned, used_align_arguments
from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.bad_records import parse_max_bad
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


def pack_job(options: Namespace) -> None:
    """Pack, verify or inspect a set.

    Raises:
        UserError: the arguments or the data are wrong, or the verification fails.
    """
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    _check_modes(options)
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
        packing = replace(
            pack_options(options),
            landmarks=options.landmarks,
            exclude=options.exclude,
            rules=rules,
            max_bad=parse_max_bad("--max-bad", options.max_bad),
        )
        manifest = pack_faces(packing, apply)
        num_bad, errors = manifest.left_out["images"], manifest.left_out["first"][:_MAX_ERRORS]
        size = sum(shard.size_bytes for shard in manifest.shards)
        show(
            f"{manifest.images} images of {manifest.identities} identities in "
            f"{count_of(len(manifest.shards), 'shard')}, {size / 1e6:,.1f} MB; {manifest.encoded} re-encoded, "
            f"{num_bad} left out"
        )
        for line in errors:
            show(f"  left out: {line}")
        if num_bad > len(errors):
            show(f"  and {num_bad - len(errors)} more, see manifest.json")


def pack_options(options: Namespace) -> PackOptions:
    """Return the options of a packing, or of an alignment into a set, from the command line.

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


def _check_modes(options: Namespace) -> None:
    given = [*options.paths]
    for name in ("verify", "inspect"):
        if (value := getattr(options, name)) is not None:
            given += [f"--{name}", value]
    modes = (options.verify is not None) + (options.inspect is not None)
    if modes > 1 or (modes and options.paths) or (not modes and len(options.paths) < 2):
        raise ConfigError(
            "arguments",
            found=" ".join(given) or "none",
            expected="SOURCE … OUT, or --verify SET, or --inspect PATH",
            fix="see the examples of `lafs pack --help`",
        )
    _check_align(options, is_packing=not modes)


def _check_align(options: Namespace, *, is_packing: bool) -> None:
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
