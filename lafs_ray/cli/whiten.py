"""`lafs whiten`: a network and the whitening of its embeddings, as one weights file."""

from __future__ import annotations

from argparse import Namespace

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.evaluation.whitening import WhiteningOptions, whitened_network
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import load_for_inference


def whitening_options(options: Namespace) -> WhiteningOptions | None:
    """Return how --whiten whitens; None without it.

    Raises:
        ConfigError: there is an option of it alone.
    """
    how = WhiteningOptions(options.whiten or "", options.readout, options.components, options.neighbors)
    if options.whiten is not None:
        return how
    if how != WhiteningOptions(""):
        raise ConfigError(
            "--readout, --components or --neighbors",
            found="no --whiten",
            expected="--whiten with the faces that a whitening is fitted on",
            fix="give --whiten FACES, or leave them out",
        )
    return None


def whiten_network(options: Namespace) -> None:
    """Write OUT, which every job takes as any network, and print what it is."""
    require_persistent_path("OUT", options.out)
    filesystem.require_output(options.out, force=options.force, inputs=(options.checkpoint, options.faces))
    weights = load_for_inference(options.checkpoint)
    how = WhiteningOptions(options.faces, options.readout, options.components, options.neighbors)
    filesystem.require_writable(filesystem.parent(options.out))
    fitted = whitened_network(weights, how, color_order=options.color_order).whitening
    assert fitted is not None
    result = weights.read_by(options.readout).whitened(fitted).without_heads()
    write_weights(options.out, result)
    show("\n".join([f"source: {weights.source}", *result.architecture.lines(), options.out]))
