"""Report runs, or a sweep, on one HTML page: settings, curves, accuracy, landmarks, attention.

python jobs/report.py demo/runs/lafs --pairs demo/faces/pairs.bin --out report.html
python jobs/report.py runs/lafs runs/dino_face --faces val.rec --out both.html
"""

from collections.abc import Sequence

from lafs_ray.cli.commands import execute
from lafs_ray.cli.main import run_job


def main(arguments: Sequence[str]) -> None:
    """Run `lafs report` with these arguments."""
    execute("report", arguments)


if __name__ == "__main__":
    raise SystemExit(run_job("report"))
