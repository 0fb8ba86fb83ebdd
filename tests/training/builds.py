"""Configurations and built runs of tiny networks, for the tests of what a configuration becomes."""

from __future__ import annotations

from typing import Any

import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.tasks.init_weights import InitWeights
from lafs_ray.training.train_step import TrainState
from tests.training.faces import tiny

SAMPLER = EpochSampler(120, 8, 0, 4)
CPU = torch.device("cpu")
NO_WEIGHTS = InitWeights()


def pretrain(*overrides: str, file: str | None = None) -> PretrainConfig:
    """A pretraining configuration that no set stands behind."""
    return tiny("nowhere", "nowhere.rec", *overrides, file=file)


def finetune(*overrides: str, file: str | None = None) -> FinetuneConfig:
    """A supervised one."""
    return tiny("nowhere", "nowhere.rec", *overrides, kind=FinetuneConfig, file=file)


def built(config: Any, num_classes: int | None = None) -> TrainState:
    """What the loop would train at the start of a run, in batches of 8 of 120 images."""
    return build_training(config, SAMPLER, num_classes, NO_WEIGHTS, CPU)
