"""From a configuration to what the loop trains, for both kinds of run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.optim import RowAdamW, parameter_groups
from lafs_ray.training.input_pipeline import Transform
from lafs_ray.training.loop import TensorBatch, TrainState, TrainTask
from lafs_ray.training.tasks.finetune import (
    build_supervised,
    labeled_transform,
    supervised_groups,
    supervised_values,
)
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors
from lafs_ray.training.tasks.networks import build_landmark_network, seed_weights
from lafs_ray.training.tasks.pretrain import (
    build_lafs,
    pretrain_values,
    token_transform,
    transform_on_device,
)

_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def frozen_landmark_network(config: PretrainConfig, start: InitWeights) -> nn.Module | None:
    """A frozen landmark CNN with a run's weights; None where the cutting of views needs none."""
    if start.landmarks is None or config.landmarks.source == "cached":
        return None
    network = build_landmark_network(config)
    network.load_state_dict(as_tensors(start.landmarks))
    return network.eval().requires_grad_(requires_grad=False)


def build_transform(config: TrainConfig, start: InitWeights) -> Transform:
    """What CPU workers make of decoded faces."""
    if isinstance(config, FinetuneConfig):
        return labeled_transform(config)
    assert isinstance(config, PretrainConfig)
    return token_transform(config, frozen_landmark_network(config, start))


def build_training(
    config: TrainConfig,
    plan: EpochSampler,
    num_classes: int | None,
    start: InitWeights,
    device: torch.device,
    rank: int = 0,
    num_ranks: int = 1,
) -> TrainState:
    """Networks, optimizer and schedules of a run on one rank, at their start.

    Args:
        config: the run's configuration.
        plan: order of the records.
        num_classes: identities of a labeled set.
        start: weights of other runs.
        device: where to train.
        rank: this rank.
        num_ranks: ranks that train together; they share the classes of a supervised run.
    """
    seed_weights(config.run.seed)
    prepare: Callable[[TensorBatch], TensorBatch] = lambda batch: batch  # noqa: E731
    clip_grad = None
    method: TrainTask
    if isinstance(config, PretrainConfig):
        method, values = build_lafs(config, device), pretrain_values(config, plan)
        clip_grad = config.optim.clip_grad
        groups = parameter_groups(method.trainable, values(0)["weight_decay"])
        if config.crops.device == "cuda":
            prepare = transform_on_device(config, frozen_landmark_network(config, start), device)
    else:
        assert isinstance(config, FinetuneConfig)
        assert num_classes is not None, "supervised training needs labels"
        method = build_supervised(config, num_classes, start, device, rank, num_ranks)
        values = supervised_values(config, plan)
        groups = supervised_groups(config, method.trainable, values(0)["weight_decay"])
    return TrainState(
        method=method,
        network=method.trainable,
        optimizer=RowAdamW(groups, lr=values(0)["lr"], fused=True),
        hparams=values,
        prepare=prepare,
        device=device,
        precision=_PRECISIONS[config.compute.precision],
        seed=config.run.seed,
        rank=rank,
        accumulation=config.accumulation,
        clip_grad=clip_grad,
        max_bad_records=config.data.max_bad_records,
    )
