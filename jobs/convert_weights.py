"""Convert a checkpoint, published or of a run, to a weights file or to the published layout.

python jobs/convert_weights.py checkpoint.pth teacher.safetensors --landmarks part_fvit.pth
python jobs/convert_weights.py teacher.safetensors back.pth
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs convert` with these arguments."""
    execute("convert", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("convert"))
