"""Options of alignment, common to `lafs align` and `lafs pack --align`."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.data.aligning.outcome import describe
from lafs_ray.data.aligning.photos import PhotoRules
from lafs_ray.data.aligning.session import REPORT, AlignOptions, Outcome, align_to_set
from lafs_ray.data.detection.attempts import FaceRules
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import Apply, count_of
from lafs_ray.engine.console import log_to
from lafs_ray.engine.progress_bar import CountHandler
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show

_LIMITS = (("--min-eyes", "min_eyes", 0.0, 1e4), ("--min-score", "min_score", 0.0, 1.0))


def used_align_arguments(options: Namespace) -> list[str]:
    """Return the arguments of alignment that were given."""
    names = ("detector", "faces", "min_eyes", "min_score", "report")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]


def align_options(options: Namespace, handler: CountHandler) -> AlignOptions:
    """Return the options of an aligning.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, attribute, low, high in _LIMITS:
        value = getattr(options, attribute)
        if value is not None and not low <= value <= high:
            raise ConfigError(name, found=f"{value:g}", expected=f"{low:g} to {high:g}", fix=f"change {name}")
    given = {"choice": options.faces, "min_eye_px": options.min_eyes, "min_score": options.min_score}
    faces = FaceRules(**{name: value for name, value in given.items() if value is not None})
    return AlignOptions(
        detector=options.detector or "mtcnn",
        rules=PhotoRules(faces, options.color_order, options.quality),
        report=options.report,
        sheet=options.sheet,
        force=options.force,
        progress=handler.start,
    )


def pack_aligned(options: Namespace, pack: PackOptions, apply: Apply) -> None:
    """Align photos into a packed set and print what became of them.

    Raises:
        UserError: see `align_to_set`.
    """
    handler = CountHandler()
    with log_to(handler):
        aligning = align_options(options, handler)
        outcome = align_to_set(aligning, pack, apply)
    print_outcome(outcome, aligning)
    manifest = outcome.manifest
    assert manifest is not None, "a set was written"
    shards = count_of(len(manifest.shards), "shard")
    show(f"{manifest.images} images of {manifest.identities} identities in {shards}, {REPORT} beside them")


def print_outcome(outcome: Outcome, options: AlignOptions) -> None:
    """Print what became of the photos."""
    if outcome.counts is not None:
        for line in describe(outcome.counts, options.rules.faces):
            show(line)
