"""The command line of `lafs`: one command and its arguments."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from lafs_ray.cli.commands import COMMANDS, execute
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show


def lafs(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises:
        UserError: there is no such command, or an error in its arguments or in what they name.
        SystemExit: argparse refused the arguments, or printed the help.
    """
    options = _parser().parse_args(arguments)
    if options.version:
        # Imported here: it imports torch.
        from lafs_ray.cli.version import version_lines

        show("\n".join(version_lines()))
    elif options.command is None:
        _parser().print_help()
    elif options.command in COMMANDS:
        execute(options.command, options.arguments)
    else:
        close = difflib.get_close_matches(options.command, COMMANDS, n=1)
        raise ConfigError(
            f"lafs {options.command}",
            found="no such command",
            expected=f"one of {', '.join(COMMANDS)}",
            fix=f"did you mean {close[0]}?" if close else "see `lafs --help`",
        )


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="lafs",
        description="Pretrain face recognition on unlabeled faces: LAFS (CVPR 2024) on Ray.",
        epilog="\n".join(["commands:", *lines, "", "`lafs COMMAND --help` has its arguments and examples."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its arguments")
    parser.add_argument(
        "--version", action="store_true", help="versions of lafs_ray, torch and Ray; features of the CPU"
    )
    return parser
