"""`lafs convert`: a checkpoint as a weights file, or in the published layout."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import convert


def convert_checkpoint(options: Namespace) -> None:
    """Convert to the format of OUT's extension, and report every tensor's name."""
    source, out, landmarks = options.source, options.out, options.landmarks
    ending = out.partition("?")[0].rpartition(".")[2]
    if ending not in ("safetensors", "pth"):
        raise ConfigError(out, found=f".{ending}", expected=".safetensors or .pth", fix="change OUT's extension")
    filesystem.require_output(out, force=options.force, inputs=[source, *([landmarks] if landmarks else [])])
    # A published checkpoint contains the heads.
    heads = options.heads or ending == "pth"
    conversion = convert(
        source, role=options.role, landmarks=landmarks, heads=heads, grid=options.grid, head_dim=options.head_dim
    )
    left_out: dict[str, str] = {}
    if ending == "safetensors":
        write_weights(out, conversion.weights)
    else:
        left_out = write_published(out, conversion.weights)
    lines = conversion.lines() + [f"omitted: {names}: {why}" for names, why in left_out.items()]
    show("\n".join([*lines, f"written: {out}, {filesystem.file_size(out):,} bytes"]))
