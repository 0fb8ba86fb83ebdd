"""What every job does around its main function: errors for people, exit codes, Ctrl-C."""

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
        interrupted: what Ctrl-C leaves behind, in a line for people.

    Returns:
        The exit code: 0 success, 2 a mistake of the user's (printed without traceback), 130 Ctrl-C.
        As shells have it, 128 and the number of a signal that the job obeyed (143 for SIGTERM).
        Anything else is our mistake and keeps its traceback.
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
        mistake = find_user_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def parse(description: str, arguments: Sequence[str], examples: str, dry_run: str) -> Namespace:
    """The command line of a job with a configuration: `config`, `overrides`, `dry_run`.

    Args:
        description: of the job.
        arguments: of the command line.
        examples: the folder of its configurations.
        dry_run: what the job does in place of its work, for people.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("config", help=f"a YAML file, such as those under {examples}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that differ from the file"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"check everything that can be checked here, {dry_run}",
    )
    return parser.parse_intermixed_args(arguments)


def require_persistent_path(key: str, uri: str) -> None:
    """Refuse to write where Ray unpacked the files that a job was submitted with.

    Args:
        key: the setting or argument that names the place.
        uri: the place.

    Raises:
        ConfigError: it lies there; Ray deletes that folder soon after the job.
    """
    if _UPLOADED in filesystem.absolute(uri):
        raise ConfigError(
            key,
            found=f"{uri}, below the folder that `ray job submit --working-dir` made on the head",
            expected="a place that outlives the job and that all nodes reach",
            fix="name a URI such as s3://bucket/runs, or a folder of a shared file system in full",
        )
