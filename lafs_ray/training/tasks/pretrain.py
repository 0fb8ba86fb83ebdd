"""From the configuration of a pretraining run to its views, task and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.pretrain import PretrainConfig, PretrainLandmarks, Views
from lafs_ray.config.train import Model
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS, DINOHead
from lafs_ray.methods.lafs import Lafs, LafsNetwork, LafsSchedules
from lafs_ray.methods.optim import CosineSchedule, LinearEpochs
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.input_pipeline import Transform
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.networks import build_transformer
from lafs_ray.training.train_loop import DeviceTransform, TensorBatch
from lafs_ray.transforms.params import ViewSettings
from lafs_ray.transforms.views import MultiViewTransform


def view_settings(model: Model, views: Views, landmarks: PretrainLandmarks) -> ViewSettings:
    """Return the settings of the views of a pretraining run."""
    return ViewSettings(
        image_size=IMAGE_SIZE,
        patch_size=model.patch_size,
        token_features=model.token_features,
        num_landmarks=model.num_landmarks,
        num_global=NUM_GLOBAL_VIEWS,
        **dict(views),
        **landmarks.model_dump(exclude={"weights", "cache", "template"}),
    )


def multi_view_transform(
    config: PretrainConfig, landmark_network: nn.Module | None, device: torch.device | str = "cpu"
) -> MultiViewTransform:
    """Return what makes tokens from faces, on CPU workers or on the training device."""
    settings = view_settings(config.model, config.views, config.landmarks)
    return MultiViewTransform(settings, landmark_network, config.run.seed, device=device)


def pretrain_transform(config: PretrainConfig, landmark_network: nn.Module | None) -> Transform:
    """Return the transform of CPU workers: faces to tokens; with crops.device=cuda, no change."""
    if config.crops.device == "cuda":
        return lambda faces: {k: v for k, v in faces.items() if k != "label"}
    return multi_view_transform(config, landmark_network).transform_columns


def device_transform(
    config: PretrainConfig, landmark_network: nn.Module | None, device: torch.device
) -> DeviceTransform:
    """Return the transform of the training device, for crops.device=cuda."""
    tokens_of = multi_view_transform(config, landmark_network, device)

    def transform(batch: TensorBatch) -> TensorBatch:
        epoch, shard, key = (batch[name].cpu().numpy() for name in ("epoch", "shard", "key"))
        tokens = tokens_of(batch["image"], epoch, shard, key, batch.get("landmarks"))
        return cast("TensorBatch", tokens)

    return transform


def build_lafs(config: PretrainConfig, device: torch.device) -> Lafs:
    """Build student, teacher and their heads, weights from torch's current generator."""

    def network() -> LafsNetwork:
        head = DINOHead(configured_size(config.model).width, **dict(config.head))
        return LafsNetwork(build_transformer(config), head).to(device)

    return Lafs(
        network(),
        network(),
        num_prototypes=config.head.num_prototypes,
        **config.dino.model_dump(exclude={"teacher_temp", "teacher_momentum"}),
    )


def pretrain_hparams(config: PretrainConfig, sampler: EpochSampler) -> Callable[[int], dict[str, float]]:
    """Return the schedules: a global step to lr, weight decay, EMA momentum and temperature."""
    length, optim, dino = run_length(config, sampler), config.optim, config.dino
    total = length.total_steps
    lr = CosineSchedule(
        optim.lr * config.batch_size / 256, optim.min_lr, total, optim.warmup.steps(length.steps_per_epoch, total)
    )
    return LafsSchedules(
        lr=lr,
        weight_decay=CosineSchedule(optim.weight_decay, optim.weight_decay_end, total),
        ema_momentum=CosineSchedule(dino.teacher_momentum, 1.0, total),
        teacher_temp=LinearEpochs(
            dino.teacher_temp.start, dino.teacher_temp.end, dino.teacher_temp.warmup_epochs, length.num_epochs
        ),
        steps_per_epoch=length.steps_per_epoch,
    )
