"""Export the face embedder of a run, checkpoint or weights file for other programs.

python jobs/export.py runs/lafs exported --formats safetensors,onnx,torch_export
"""

import argparse
from collections.abc import Sequence

from lafs_ray.cli.main import require_persistent_path, run
from lafs_ray.data.io import filesystem
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.export import FILES, TOLERANCE, export_embedder, require_format
from lafs_ray.training.checkpoint.inference import load_for_inference


def main(arguments: Sequence[str]) -> None:
    """Write OUT/embedder.* in each format, and print each one's difference from our network."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's folder, a checkpoint, or a weights file")
    parser.add_argument("out", help="folder of the exported files")
    parser.add_argument("--formats", default="safetensors", help=f"some of {','.join(FILES)}")
    parser.add_argument(
        "--input",
        choices=["float32", "uint8"],
        default="float32",
        help="input of onnx and torch_export: NCHW in [-1, 1], or NHWC pixels 0…255",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    options = parser.parse_args(arguments)
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


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; the files named above are complete"))
