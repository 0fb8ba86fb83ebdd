"""Convert a checkpoint, published or of a run, to a weights file or to the published layout.

python jobs/convert_weights.py checkpoint.pth teacher.safetensors --landmarks part_fvit.pth python
jobs/convert_weights.py teacher.safetensors back.pth
"""

import argparse
from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.architecture import PUBLISHED_HEAD_DIM
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import convert


def main(arguments: Sequence[str]) -> None:
    """Convert to the format of OUT's extension, and report every tensor's name."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="run, its checkpoint, weights file, published checkpoint")
    parser.add_argument("out", help=".safetensors: a weights file; .pth: published names")
    parser.add_argument("--role", choices=["teacher", "student"], default="teacher")
    parser.add_argument("--landmarks", help="stage-1 checkpoint with the landmark CNN to add")
    parser.add_argument("--heads", action="store_true", help="keep DINO head and class weight")
    parser.add_argument("--grid", action="store_true", help="trained on grid patches (DINO-face)")
    parser.add_argument("--head-dim", type=int, default=PUBLISHED_HEAD_DIM, metavar="WIDTH")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    options = vars(parser.parse_args(arguments))
    source, out, force = (options.pop(name) for name in ("source", "out", "force"))
    ending = out.partition("?")[0].rpartition(".")[2]
    if ending not in ("safetensors", "pth"):
        raise ConfigError(out, found=f".{ending}", expected=".safetensors or .pth", fix="change OUT's extension")
    landmarks = options["landmarks"]
    filesystem.require_output(out, force=force, inputs=[source, *([landmarks] if landmarks else [])])
    # A published checkpoint contains the heads.
    conversion = convert(source, **{**options, "heads": options["heads"] or ending == "pth"})
    left_out: dict[str, str] = {}
    if ending == "safetensors":
        write_weights(out, conversion.weights)
    else:
        left_out = write_published(out, conversion.weights)
    lines = conversion.lines() + [f"omitted: {names}: {why}" for names, why in left_out.items()]
    show("\n".join([*lines, f"written: {out}, {filesystem.file_size(out):,} bytes"]))


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; nothing was written"))
