"""Export the face embedder of a run, checkpoint or weights file for other programs.

python jobs/export.py runs/lafs exported --formats safetensors,onnx,torch_export
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs export` with these arguments."""
    execute("export", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("export"))
