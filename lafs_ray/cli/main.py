"""Common parts of the command lines: error messages, exit codes, Ctrl-C, arguments."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.engine.signals import Stopped
from lafs_ray.errors import ConfigError, find_user_error
from lafs_ray.messages import PrintableFormatter, show, show_bug

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
    _outlive_outputs()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = show_bug
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        show(interrupted, file=sys.stderr)
        return 130
    except Stopped as stopped:
        show(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        show(f"error: {user_error}", file=sys.stderr)
        return 2
    finally:
        sys.stdout.flush()
    return 0


class _Output(io.FileIO):
    """Standard output or error; from its first failure on, what is written goes nowhere."""

    def write(self, data: Any) -> int:
        """Write bytes; a reader that went away ends the output quietly, other errors are reported once."""
        try:
            return super().write(data)
        except OSError as error:
            # Libraries and child processes write to the descriptor as well.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if error.errno != errno.EPIPE:
                show(f"warning: the output is lost from here: {error.strerror}", file=sys.stderr)
            return len(data)


def _outlive_outputs() -> None:
    """Let the job go on when its standard output or error is closed, full, or a pipe without a reader."""
    # A file opened later would get the number of a closed output, and what is printed.
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = _Output(stream.fileno(), "wb", closefd=False)
            wrapped = io.TextIOWrapper(
                raw if stream.write_through else io.BufferedWriter(raw),  # as `python -u`
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, wrapped)


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
