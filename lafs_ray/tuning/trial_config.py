"""From a sweep to the configurations of its runs: base file, settings of all, settings of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import apply_overrides, read_yaml, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.space import Settings

Tree = dict[str, Any]

# Words that stand in place of a path.
_WORDS = ("untrained",)
_PATHS = (
    "data.path",
    "start.transformer",
    "start.landmarks",
    "landmarks.weights",
    "landmarks.cache",
)
# Stands for a trial's own checkpoint until there is one.
TRIAL = "<the trial>"


@dataclass(frozen=True)
class Sweep:
    """A sweep and the files that it is based on.

    Args:
        config: its settings.
        base: what all its trials have in common.
        finetune: what all short finetunings of a pretraining sweep have in common, if it has any.
        here: folder that relative paths are meant from; trials run in other ones.
    """

    config: SweepConfig
    base: Tree
    finetune: Tree | None
    here: str

    @property
    def kind(self) -> type[FinetuneConfig] | type[PretrainConfig]:
        """The configuration's class of a trial."""
        return FinetuneConfig if self.config.job == "finetune" else PretrainConfig

    @cached_property
    def default(self) -> FinetuneConfig | PretrainConfig:
        """The job without any setting of the space."""
        return resolve(self.kind, self.base, self.config.base)

    @cached_property
    def default_finetune(self) -> FinetuneConfig | None:
        """The short finetuning, from a trial that is yet to be."""
        if self.finetune is None:
            return None
        return self.finetune_job(TRIAL, name="finetune", folder=self.config.storage, seed=0)

    def tree(self, settings: Settings) -> Tree:
        """The job with the settings of a trial, as a tree."""
        return apply_overrides(self.base, settings)

    def job(
        self, settings: Settings, *, name: str, folder: str, seed: int
    ) -> FinetuneConfig | PretrainConfig:
        """One run of a trial: its results lie in `<folder>/<name>`."""
        reports = self.config.objective.reports
        tree = self._run_tree(self.tree(settings), name, folder, seed, reports)
        return resolve(self.kind, tree, f"trial with {settings}")

    def finetune_job(
        self, transformer: str, *, name: str, folder: str, seed: int
    ) -> FinetuneConfig:
        """The short finetuning of a pretrained checkpoint."""
        assert self.finetune is not None, "the sweep judges frozen networks"
        tree = apply_overrides(self.finetune, {"start.transformer": transformer})
        tree = self._run_tree(tree, name, folder, seed, 1)
        return resolve(FinetuneConfig, tree, f"finetuning of {transformer}")

    def _run_tree(self, tree: Tree, name: str, folder: str, seed: int, reports: int) -> Tree:
        """A job's tree as a trial runs it: in the sweep's folder, judged by the sweep alone."""
        run = {"run": {"name": name, "storage": folder, "seed": seed}, "online_eval": {}}
        # Every report judges a checkpoint, and the trial deletes them; how far apart they lie is
        # decided where the number of steps is known.
        run["checkpoints"] = {"every": "1 run", "keep": reports}
        found = {path: _at(tree, path) for path in _PATHS}
        absolute = {
            path: filesystem.absolute(value, self.here)
            for path, value in found.items()
            if isinstance(value, str) and value not in _WORDS
        }
        return {**apply_overrides(tree, absolute), **run}


def read_sweep(config: SweepConfig) -> Sweep:
    """Read the files that a sweep is based on.

    Raises:
        ConfigError: one is missing or no YAML.
    """
    base = with_settings(read_yaml(config.base), config.settings)
    finetune = None
    if config.finetune is not None:
        finetune = with_settings(read_yaml(config.finetune.base), config.finetune.settings)
    return Sweep(config, base, finetune, os.getcwd())


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> Tree:
    """A tree with settings on top: by section (`{data: {path: …}}`) or by dotted key."""
    return apply_overrides(tree, dict(_flat(settings)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
