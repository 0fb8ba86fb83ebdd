"""Common parts of the command lines: error messages, exit codes, Ctrl-C."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lafs_ray.cli.commands import COMMANDS, execute
from lafs_ray.errors import Stopped, find_user_error
from lafs_ray.messages import PrintableFormatter, show, show_bug

_CONTINUES = "interrupted; the same command continues"


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


def run_job(name: str) -> int:
    """Run a command as `python jobs/<name>.py`, with the arguments of the command line; return the exit code."""
    program = f"python jobs/{os.path.basename(sys.argv[0])}"
    return run(partial(execute, name, program=program), COMMANDS[name].interrupted)
