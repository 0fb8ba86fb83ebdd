"""`lafs` and `python -m lafs_ray`: Ctrl-C is answered from the first import on."""

from __future__ import annotations

from lafs_ray.interrupt import exit_at_once


def main() -> int:
    """Run the command line; return the exit code."""
    with exit_at_once():
        from lafs_ray.cli.lafs import lafs
        from lafs_ray.cli.main import run
    return run(lafs)


if __name__ == "__main__":
    raise SystemExit(main())
