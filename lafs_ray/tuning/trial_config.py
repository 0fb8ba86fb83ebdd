"""Configurations of a sweep's runs: base file, settings of all trials, settings of one trial."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import apply_overrides, resolve
from lafs_ray.config.presets import config_file
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.yaml_text import read_yaml
from lafs_ray.data.io import filesystem
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.search_space import Settings, flatten

Tree = dict[str, Any]

# Values that are no paths.
_KEYWORDS = ("untrained",)
_PATHS = (
    *("data.path", "start.transformer", "start.landmarks", "start.student", "start.teacher"),
    *("landmarks.weights", "landmarks.cache", "landmarks.template"),
)
# Placeholder for a trial's checkpoint until there is one.
TRIAL_CHECKPOINT = "<the trial's checkpoint>"


@dataclass(frozen=True)
class Sweep:
    """A sweep and the files that it is based on.

    Args:
        config: its settings.
        base: settings that all trials share, as a tree.
        finetune: settings that all short finetunings of a pretraining sweep share.
        working_dir: directory that relative paths refer to; trials run in other ones.
    """

    config: SweepConfig
    base: Tree
    finetune: Tree | None
    working_dir: str

    @property
    def kind(self) -> type[FinetuneConfig] | type[PretrainConfig]:
        """Configuration class of a trial."""
        return FinetuneConfig if self.config.task == "finetune" else PretrainConfig

    @cached_property
    def default(self) -> FinetuneConfig | PretrainConfig:
        """Configuration without any setting of the space."""
        return resolve(self.kind, self.base, self.config.base)

    @cached_property
    def default_finetune(self) -> FinetuneConfig | None:
        """Configuration of the short finetuning, with a placeholder for the checkpoint."""
        if self.finetune is None:
            return None
        return self.finetune_config(TRIAL_CHECKPOINT, name="finetune", storage=self.config.storage, seed=0)

    def tree(self, settings: Settings) -> Tree:
        """Return the tree of a configuration with the settings of a trial."""
        return apply_overrides(self.base, settings)

    def run_config(self, settings: Settings, *, name: str, storage: str, seed: int) -> FinetuneConfig | PretrainConfig:
        """Return the configuration of one run of a trial, which writes to `<storage>/<name>`."""
        reports = self.config.objective.reports
        tree = self._run_tree(self.tree(settings), name, storage, seed, reports)
        return resolve(self.kind, tree, f"trial with {settings}")

    def finetune_config(self, transformer: str, *, name: str, storage: str, seed: int) -> FinetuneConfig:
        """Return the configuration of the short finetuning of a pretrained checkpoint."""
        assert self.finetune is not None, "the sweep evaluates frozen networks"
        tree = apply_overrides(self.finetune, {"start.transformer": transformer})
        tree = self._run_tree(tree, name, storage, seed, 1)
        return resolve(FinetuneConfig, tree, f"finetuning of {transformer}")

    def _run_tree(self, tree: Tree, name: str, storage: str, seed: int, reports: int) -> Tree:
        run = {"run": {"name": name, "storage": storage, "seed": seed}, "online_eval": {}}
        # The trial evaluates every checkpoint and deletes it; their distance is set once the number of steps is known.
        run["checkpoints"] = {"every": "1 run", "keep": reports}
        absolute = {
            path: filesystem.absolute(value, self.working_dir)
            for path, value in flatten(tree).items()
            if path in _PATHS and isinstance(value, str) and value not in _KEYWORDS
        }
        for number, one in enumerate(tree.get("data", {}).get("mix") or ()):
            for key in ("path", "landmarks"):
                if isinstance(one, Mapping) and isinstance(one.get(key), str):
                    absolute[f"data.mix.{number}.{key}"] = filesystem.absolute(one[key], self.working_dir)
        return {**apply_overrides(tree, absolute), **run}


def read_sweep(config: SweepConfig) -> Sweep:
    """Read the files that a sweep is based on.

    Raises:
        ConfigError: one is missing or not YAML.
    """
    base = with_settings(read_yaml(config_file(config.task, config.base)), config.settings)
    finetune = None
    if config.finetune is not None:
        finetune = with_settings(read_yaml(config_file("finetune", config.finetune.base)), config.finetune.settings)
    return Sweep(config, base, finetune, os.getcwd())


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> Tree:
    """Return a tree with settings, by section (`{data: {path: …}}`) or by dotted key."""
    return apply_overrides(tree, flatten(settings))
