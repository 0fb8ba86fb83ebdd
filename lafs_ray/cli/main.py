"""Common parts of the command lines: error messages, exit codes, Ctrl-C, arguments."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from lafs_ray.data.io import filesystem
from lafs_ray.engine.signals import Stopped
from lafs_ray.errors import ConfigError, find_user_error

_UPLOADED = "/runtime_resources/working_dir_files/"

_CONTINUES = "interrupted; the same command continues from the last checkpoint"


def run(main: Callable[[Sequence[str]], None], interrupted: str = _CONTINUES) -> int:
    """Run a job's main function on the command line's arguments.

    Args:
        main: the job.
        interrupted: message for Ctrl-C.

    Returns:
        The exit code: 0 success; 2 a `UserError`, printed without traceback; 130 Ctrl-C; 128 plus
        the number of a signal that stopped the run (143 for SIGTERM). Other exceptions are bugs and keep their
        traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)  # noqa: T201
        return 130
    except Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201
        return 128 + stopped.signum
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        print(f"error: {user_error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def parse(description: str, arguments: Sequence[str], examples: str, dry_run: str) -> Namespace:
    """Parse the command line of a job with a configuration: `config`, `overrides`, `dry_run`.

    Args:
        description: of the job.
        arguments: of the command line.
        examples: the folder of its configurations.
        dry_run: help text, after "check the configuration and all inputs, then".
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("config", help=f"a YAML file, such as those under {examples}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file")
    parser.add_argument(
        "--dry-run", action="store_true", help=f"check the configuration and all inputs, then {dry_run}"
    )
    return parser.parse_intermixed_args(arguments)


def require_persistent_path(key: str, uri: str) -> None:
    """Refuse to write where Ray unpacked the uploaded working directory of a job.

    Args:
        key: the setting or argument of the path.
        uri: the path.

    Raises:
        ConfigError: it lies there; Ray deletes that folder after the job.
    """
    if _UPLOADED in filesystem.absolute(uri):
        raise ConfigError(
            key,
            found=f"{uri}, below the folder that `ray job submit --working-dir` made on the head",
            expected="a path that remains after the job and that all nodes can access",
            fix="give a URI such as s3://bucket/runs, or the absolute path of a shared folder",
        )
