"""Mine pairs of faces that probably show one person, without labels, for pretraining.

python jobs/mine_neighbors.py whitened.safetensors faces/train.rec neighbors.safetensors
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs mine-neighbors` with these arguments."""
    execute("mine-neighbors", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("mine-neighbors"))
