"""Status of a run: state, step, loss, speed, time left, checkpoint, warnings, evaluation.

python jobs/status.py runs/lafs          # or s3://bucket/runs/lafs; --json for programs
"""

import argparse
from collections.abc import Sequence

from lafs_ray.cli.main import run
from lafs_ray.messages import show
from lafs_ray.training.monitoring.status import read_status


def main(arguments: Sequence[str]) -> None:
    """Print the status of a run, which may be running."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a run, a path or a URI")
    parser.add_argument("--json", action="store_true", help="all fields, as JSON")
    options = parser.parse_args(arguments)
    status = read_status(options.run)
    show(status.as_json() if options.json else status)


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted"))
