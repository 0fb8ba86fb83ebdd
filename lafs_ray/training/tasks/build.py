"""From a configuration to what the loop trains, for every kind of run."""

from __future__ import annotations

import torch
from torch import nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.optim import RowAdamW, parameter_groups
from lafs_ray.training.input_pipeline import Transform
from lafs_ray.training.tasks.continue_pretraining import load_start
from lafs_ray.training.tasks.distillation import build_distillation
from lafs_ray.training.tasks.finetune import build_supervised, finetune_transform, supervised_groups, supervised_hparams
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors
from lafs_ray.training.tasks.landmarks import build_regression, regression_hparams, regression_transform
from lafs_ray.training.tasks.networks import build_landmark_network, seed_weights
from lafs_ray.training.tasks.pretrain import build_lafs, device_views, pretrain_hparams, pretrain_transform
from lafs_ray.training.train_step import DeviceTransform, TrainState, TrainTask, unchanged

_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def frozen_landmark_network(config: PretrainConfig, init_weights: InitWeights) -> nn.Module | None:
    """Build the frozen landmark CNN of a pretraining run; None if its views need none."""
    if init_weights.landmarks is None or config.landmarks.source == "cached":
        return None
    network = build_landmark_network(config)
    network.load_state_dict(as_tensors(init_weights.landmarks))
    return network.eval().requires_grad_(requires_grad=False)


def build_transform(config: TrainConfig, init_weights: InitWeights) -> Transform:
    """Build the transform of CPU workers."""
    if isinstance(config, FinetuneConfig):
        return finetune_transform(config)
    if isinstance(config, LandmarkConfig):
        return regression_transform(config)
    assert isinstance(config, PretrainConfig)
    return pretrain_transform(config, frozen_landmark_network(config, init_weights))


def build_training(
    config: TrainConfig,
    sampler: EpochSampler,
    num_classes: int | None,
    init_weights: InitWeights,
    device: torch.device,
    rank: int = 0,
    num_ranks: int = 1,
) -> TrainState:
    """Build networks, optimizer and schedules of a run on one rank, as they are at its start.

    Args:
        config: the run's configuration.
        sampler: order of the records.
        num_classes: identities of a labeled set.
        init_weights: weights of other runs.
        device: where to train.
        rank: this rank.
        num_ranks: ranks that train together; they share the classes of a supervised run.
    """
    seed_weights(config.run.seed)
    task: TrainTask
    transform: DeviceTransform = unchanged
    if isinstance(config, PretrainConfig):
        frozen = init_weights.frozen
        lafs = build_lafs(config, device) if frozen is None else build_distillation(config, frozen, device)
        load_start(lafs, init_weights)
        task, hparams = lafs, pretrain_hparams(config, sampler)
        groups = parameter_groups(task.trainable, hparams(0)["weight_decay"])
        if config.crops.device == "cuda":
            network = frozen_landmark_network(config, init_weights)
            transform = device_views(config, network, device)
    elif isinstance(config, LandmarkConfig):
        task, hparams = build_regression(config, init_weights, device), regression_hparams(config, sampler)
        groups = parameter_groups(task.trainable, hparams(0)["weight_decay"])
    else:
        assert isinstance(config, FinetuneConfig)
        assert num_classes is not None, "supervised training needs labels"
        task = build_supervised(config, num_classes, init_weights, device, rank, num_ranks)
        hparams = supervised_hparams(config, sampler)
        groups = supervised_groups(config, task.trainable, hparams(0)["weight_decay"])
    return TrainState(
        task=task,
        network=task.trainable,
        optimizer=RowAdamW(groups, lr=hparams(0)["lr"], fused=True),
        hparams=hparams,
        device=device,
        precision=_PRECISIONS[config.compute.precision],
        seed=config.run.seed,
        rank=rank,
        accumulation=config.accumulation,
        clip_grad=config.optim.clip_grad if isinstance(config, PretrainConfig) else None,
        max_bad_records=config.data.max_bad_records,
        transform=transform,
    )
