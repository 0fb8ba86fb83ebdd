"""Evaluate a frozen network on pairs, identities, templates and in identification.

python jobs/evaluate.py runs/lafs lfw.bin agedb_30.bin --identities val.rec --templates ijb/IJBC
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs evaluate` with these arguments."""
    execute("evaluate", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("evaluate"))
