"""`docs/config.md` from the classes: `python -m docs.config_docs > docs/config.md`."""

from __future__ import annotations

from lafs_ray.config.describe import Setting, settings
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.tuning.config import SweepConfig

_HEADER = """\
# Configuration

Every key with its default and meaning, generated from the code (a test compares them) by
`python -m docs.config_docs > docs/config.md`.

A YAML file contains what differs from the defaults; `key=value` on the command line overrides it:
`lafs pretrain lafs optim.lr=1e-3 "duration=5 epochs"`. `lafs config KEY` prints what is here. An unknown
key or an invalid value stops the job before anything starts, with all errors in one message.
Durations are written `10 epochs`, `500 steps` or `0.2 run`.
"""


def describe() -> str:
    """Return the complete document."""
    parts = [_HEADER]
    for title, kind in (
        ("Pretraining (`lafs pretrain`)", PretrainConfig),
        ("Supervised training: stage 1 and finetuning (`lafs finetune`)", FinetuneConfig),
        ("Landmark regression (`lafs train-landmarks`)", LandmarkConfig),
        ("Sweeps (`lafs sweep`)", SweepConfig),
    ):
        rows = "\n".join(map(_row, settings(kind)))
        parts.append(f"## {title}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    default = {None: "required", "null": "none"}.get(setting.default, f"`{setting.default}`")
    meaning = setting.meaning.replace("|", "\\|")
    return f"| `{setting.key}` | {default} | {meaning} |"


if __name__ == "__main__":
    print(describe(), end="")  # noqa: T201
