"""Whiten a network's embeddings on faces without labels; write it with its whitening.

python jobs/whiten.py runs/lafs faces/train.rec lafs_whitened.safetensors
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs whiten` with these arguments."""
    execute("whiten", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("whiten"))
