"""`lafs completion`: commands, options, presets and keys for bash, zsh and fish."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator

from lafs_ray.cli.commands import COMMANDS, build_parser
from lafs_ray.cli.config import KINDS
from lafs_ray.config import presets
from lafs_ray.config.describe import settings
from lafs_ray.messages import show

_BASH = """\
# bash: source <(lafs completion bash)
_lafs() {
    local current=${COMP_WORDS[COMP_CWORD]} words=""
    # `=` and `:` separate words in bash; a value is completed as a file.
    if [[ $current == "=" || ${COMP_WORDS[COMP_CWORD-1]} == "=" ]]; then
        COMPREPLY=($(compgen -f -- "${current#=}")); return
    fi
    if (( COMP_CWORD == 1 )); then
        words="@commands@ --help --version"
    else
        case ${COMP_WORDS[1]} in
@cases@
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _lafs lafs
"""


def print_script(options: Namespace) -> None:
    """Print the script; each says in its first line how a shell loads it."""
    show({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]().rstrip())


def _bash() -> str:
    cases = [f'            {name}) words="{" ".join(_words(name))}" ;;' for name in COMMANDS]
    return _BASH.replace("@commands@", " ".join(COMMANDS)).replace("@cases@", "\n".join(cases))


def _zsh() -> str:
    loading = "# zsh: source <(lafs completion zsh)\nautoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
    return loading + _bash().partition("\n")[2]


def _fish() -> str:
    lines = ["# fish: lafs completion fish | source"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c lafs -n __fish_use_subcommand -a {name} -d {_quoted(command.summary)}")
        within = f"complete -c lafs -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{within} -l {long} -d {_quoted(text)}" for long, text in _options(name)]
        lines += [f"{within} -a {word}" for word in _names(name)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _words(name: str) -> list[str]:
    return [f"--{long}" for long, _ in _options(name)] + [*_names(name)]


def _options(name: str) -> Iterator[tuple[str, str]]:
    """Yield each option of a command without its dashes, and its help."""
    for action in build_parser(name, f"lafs {name}")._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                yield option[2:], action.help or ""


def _names(name: str) -> Iterator[str]:
    """Yield what stands without dashes: presets and keys of a configuration, choices of an argument."""
    if name in KINDS:
        yield from presets.names(name)
        yield from (f"{setting.key}=" for setting in settings(KINDS[name]))
    elif name == "config":
        yield from sorted({setting.key for kind in KINDS.values() for setting in settings(kind)})
    for action in build_parser(name, f"lafs {name}")._actions:
        if not action.option_strings and action.choices is not None and action.nargs != argparse.REMAINDER:
            yield from map(str, action.choices)
