"""`lafs export`: the face embedder for other programs."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.export import FILES, HUGGING_FACE, TOLERANCE, export_embedder, require_format
from lafs_ray.models.checkpoints.hub_folder import Card, write_hub_folder
from lafs_ray.training.checkpoint.inference import load_for_inference


def export_network(options: Namespace) -> None:
    """Write OUT/embedder.* in each format, and print each one's difference from our network."""
    require_persistent_path("OUT", options.out)
    names = [*dict.fromkeys(options.formats.split(","))]
    hub = filesystem.join(options.out, HUGGING_FACE) if HUGGING_FACE in names else None
    files = {}
    for name in names:
        if name == HUGGING_FACE:
            continue
        require_format(name)
        files[name] = filesystem.join(options.out, FILES[name])
        filesystem.require_output(files[name], force=options.force, inputs=[options.checkpoint])
    weights = load_for_inference(options.checkpoint)
    show("\n".join([f"source: {weights.source}", *weights.architecture.lines()]))
    for name, uri in files.items():
        difference = export_embedder(weights, uri, name, kind=options.input)
        size = filesystem.file_size(uri)
        show(f"{uri}: {size:,} bytes; differs by {difference:.1e} (allowed {TOLERANCE:.0e})")
    if hub is not None:
        write_hub_folder(hub, weights, Card(license=options.license, data=options.data), force=options.force)
        show(f"{hub}: config.json, model.safetensors and README.md, a folder for the Hugging Face Hub")
