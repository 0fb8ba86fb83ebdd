"""`lafs export`: the face embedder for other programs."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.export import FILES, TOLERANCE, export_embedder, require_format
from lafs_ray.training.checkpoint.inference import load_for_inference


def export_network(options: Namespace) -> None:
    """Write OUT/embedder.* in each format, and print each one's difference from our network."""
    require_persistent_path("OUT", options.out)
    files = dict.fromkeys(options.formats.split(","), "")
    for name in files:
        require_format(name)
        files[name] = filesystem.join(options.out, FILES[name])
        filesystem.require_output(files[name], force=options.force, inputs=[options.checkpoint])
    weights = load_for_inference(options.checkpoint)
    show("\n".join([f"source: {weights.source}", *weights.architecture.lines()]))
    for name, uri in files.items():
        difference = export_embedder(weights, uri, name, kind=options.input)
        size = filesystem.file_size(uri)
        show(f"{uri}: {size:,} bytes; differs by {difference:.1e} (allowed {TOLERANCE:.0e})")
