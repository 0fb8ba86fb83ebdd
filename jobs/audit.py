"""Audit a face set by its embeddings: leaks into test sets, wrong labels, copies, balance.

python jobs/embed.py runs/lafs train.rec train.parquet --flip
python jobs/embed.py runs/lafs lfw.bin lfw.parquet --flip
python jobs/audit.py train.parquet --against lfw.parquet --out audit
python jobs/pack.py train.rec clean --exclude audit/exclude.csv
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs audit` with these arguments."""
    execute("audit", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("audit"))
