"""`lafs config`: settings with default and meaning, and the presets."""

from __future__ import annotations

import difflib
import textwrap
from argparse import Namespace

from lafs_ray.config import presets
from lafs_ray.config.describe import Setting, settings
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import Section
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show
from lafs_ray.tuning.config import SweepConfig

KINDS: dict[str, type[Section]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "landmarks": LandmarkConfig,
    "sweep": SweepConfig,
}


def print_settings(options: Namespace) -> None:
    """Print the settings whose key is, begins with, or contains the given one.

    Raises:
        ConfigError: no key does.
    """
    jobs = [options.job] if options.job else [*KINDS]
    if options.presets:
        for job in jobs:
            show(f"lafs {job}")
            width = max(map(len, presets.names(job))) + 2
            show("".join(f"  {name:{width}}{presets.summary(job, name)}\n" for name in presets.names(job)))
        return
    tables = {job: [*settings(KINDS[job])] for job in jobs}
    found = {job: _matching(table, options.key) for job, table in tables.items()}
    if not any(found.values()):
        known = {setting.key for table in tables.values() for setting in table}
        close = difflib.get_close_matches(options.key, known, n=3)
        raise ConfigError(
            options.key,
            found="no such setting",
            expected="a key, a section such as optim, or a part of a name",
            fix=f"did you mean {' or '.join(close)}?" if close else "`lafs config` lists all",
        )
    show("\n".join(_text(found)))


def _matching(table: list[Setting], key: str) -> list[Setting]:
    for chosen in (
        [one for one in table if one.key == key],
        [one for one in table if one.key.startswith(f"{key}.") or not key],
        [one for one in table if key in one.key],
    ):
        if chosen:
            return chosen
    return []


def _text(found: dict[str, list[Setting]]) -> list[str]:
    """Return the lines of all jobs; what several jobs share appears once."""
    jobs_of: dict[Setting, list[str]] = {}
    for job, table in found.items():
        for setting in table:
            jobs_of.setdefault(setting, []).append(job)
    lines = []
    for setting, jobs in jobs_of.items():
        default = "required" if setting.default is None else f"default {setting.default}"
        choices = f"; one of {', '.join(setting.choices)}" if setting.choices else ""
        lines.append(f"{setting.key}  ({', '.join(jobs)}: {default}{choices})")
        lines += textwrap.wrap(setting.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return lines
