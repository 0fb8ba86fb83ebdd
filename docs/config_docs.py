"""`docs/config.md` from the classes: `python -m docs.config_docs > docs/config.md`."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticUndefined

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import Section, section_at
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.tuning.config import SweepConfig

_HEADER = """\
# Configuration

Every key with its default and meaning, generated from the code (a test compares them) by
`python -m docs.config_docs > docs/config.md`.

A YAML file contains what differs from the defaults; `key=value` on the command line overrides it:
`python jobs/pretrain.py configs/pretrain/lafs.yaml optim.lr=1e-3 "duration=5 epochs"`. An unknown
key or an invalid value stops the job before anything starts, with all errors in one message.
Durations are written `10 epochs`, `500 steps` or `0.2 run`.
"""


def describe() -> str:
    """Return the complete document."""
    parts = [_HEADER]
    for title, kind in (
        ("Pretraining (`jobs/pretrain.py`)", PretrainConfig),
        ("Supervised training: stage 1 and finetuning (`jobs/finetune.py`)", FinetuneConfig),
        ("Sweeps (`jobs/sweep.py`)", SweepConfig),
    ):
        rows = "\n".join(_rows(kind, ""))
        parts.append(f"## {title}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _rows(kind: type[Section], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, info in kind.model_fields.items():
        inner = section_at(kind, [name])
        if inner is None or isinstance(_plain(info.default), str):
            meaning = " ".join(str(info.description).split()).replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | {_shown(info.default)} | {meaning} |")
        else:
            rows += _rows(inner, f"{prefix}{name}.")
    return rows


def _plain(default: Any) -> Any:
    return default.model_dump(mode="json") if isinstance(default, Section) else default


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    plain = _plain(default)
    if isinstance(plain, bool):
        return f"`{str(plain).lower()}`"
    return "none" if plain is None else f"`{_written(plain)}`"


def _written(value: Any) -> str:
    """Return a value as in YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(describe(), end="")  # noqa: T201
