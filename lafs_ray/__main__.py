"""`lafs` and `python -m lafs_ray`: Ctrl-C is answered from the first import on."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; return the exit code."""
    try:
        from lafs_ray.cli.lafs import lafs
        from lafs_ray.cli.main import run
    except KeyboardInterrupt:
        from lafs_ray.messages import show

        show("interrupted", file=sys.stderr)
        return 130
    return run(lafs)


if __name__ == "__main__":
    raise SystemExit(main())
