"""Arguments of the commands with a configuration: pretraining, finetuning, sweeps."""

from __future__ import annotations

from argparse import ArgumentParser


def pretrain(parser: ArgumentParser) -> None:
    """Add the arguments of pretraining."""
    _configured(parser, "pretrain", "print the length of the run, and exit")
    _extendable(parser)


def finetune(parser: ArgumentParser) -> None:
    """Add the arguments of supervised training."""
    _configured(parser, "finetune", "print the length of the run, and exit")
    _extendable(parser)


def train_landmarks(parser: ArgumentParser) -> None:
    """Add the arguments of the regression of a landmark CNN."""
    _configured(parser, "landmarks", "print the length of the run, and exit")
    _extendable(parser)


def sweep(parser: ArgumentParser) -> None:
    """Add the arguments of a sweep."""
    _configured(parser, "sweep", "describe the trials, and exit")


def _extendable(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--extend",
        action="store_true",
        help="make the run of this name longer, or change its schedule: duration, optim.*, dino.teacher_temp.*, …",
    )


def _configured(parser: ArgumentParser, task: str, dry_run: str) -> None:
    parser.add_argument(
        "config", help=f"a preset such as debug (`lafs config --presets` lists all), or a YAML file of a {task} job"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that override the file, such as optim.lr=1e-3 (`lafs config` explains all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help=f"check the configuration and all inputs, then {dry_run}"
    )
