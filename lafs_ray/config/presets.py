"""Ready-made configurations by name: those of `configs/`, which the wheel contains."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from lafs_ray.errors import ConfigError

TASKS = ("pretrain", "finetune", "landmarks", "sweep")

_PACKAGE = Path(__file__).parents[1]
# In a wheel inside the package, in a checkout beside it.
FOLDER = next((one for one in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if one.is_dir()), None)


def names(task: str) -> list[str]:
    """Return the presets of a task, in alphabetical order."""
    return sorted(file.stem for file in (FOLDER / task).glob("*.yaml")) if FOLDER else []


def config_file(task: str, text: str) -> str:
    """Return the YAML file that a command line names: a preset, or a path.

    A path has a suffix or a folder, or is there. `configs/<task>/<name>.yaml` is the preset where no such file exists.

    Raises:
        ConfigError: neither a preset nor a path.
    """
    path = Path(text)
    is_preset_path = path.parts[:-1] == ("configs", path.parent.name) and path.parent.name in TASKS
    if not path.is_file() and FOLDER is not None:
        name, folder = (path.stem, path.parent.name) if is_preset_path else (text, task)
        if name in names(folder):
            return str(FOLDER / folder / f"{name}.yaml")
    if path.suffix or path.exists() or len(path.parts) > 1:
        return text
    known = names(task)
    close = difflib.get_close_matches(text, known, n=1)
    raise ConfigError(
        text,
        found="neither a preset nor a file",
        expected=f"one of {', '.join(known)}, or the path of a YAML file",
        fix=f"did you mean {close[0]}?" if close else "check the name; `lafs config --presets` describes each",
    )


def summary(task: str, name: str) -> str:
    """Return the first sentence of a preset's comment."""
    assert FOLDER is not None
    lines = (FOLDER / task / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment).partition(". ")[0].rstrip(".") + "."
