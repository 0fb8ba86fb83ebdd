"""From the configuration of a pretraining run to its views, method and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import IMAGE_SIZE
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.lafs import Lafs, LafsNetwork
from lafs_ray.methods.schedules import CosineSchedule, LinearEpochs
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.models.heads import DINOHead
from lafs_ray.training.input_pipeline import Columns, Transform
from lafs_ray.training.loop import TensorBatch
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.networks import build_transformer
from lafs_ray.transforms.params import ViewSettings
from lafs_ray.transforms.views import MultiViewTransform


def view_settings(config: PretrainConfig) -> ViewSettings:
    """The views of a pretraining run."""
    views, landmarks = config.views, config.landmarks
    return ViewSettings(
        image_size=IMAGE_SIZE,
        patch_size=config.model.patch_size,
        num_landmarks=config.model.num_landmarks,
        num_local=views.num_local,
        crop_area=views.crop_area,
        crop_aspect=views.crop_aspect,
        local_crop_area=views.local_crop_area,
        flip=views.flip,
        jitter=views.jitter,
        brightness=views.brightness,
        contrast=views.contrast,
        saturation=views.saturation,
        hue=views.hue,
        gray=views.gray,
        blur=views.blur,
        blur_sigma=views.blur_sigma_px,
        solarize=views.solarize,
        landmark_noise_px=landmarks.noise_px,
        local_tokens=landmarks.local_tokens,
        shuffle=landmarks.shuffle,
        replacement=landmarks.replacement,
        landmark_source=landmarks.source,
    )


def token_transform(config: PretrainConfig, landmark_network: nn.Module | None) -> Transform:
    """What CPU workers make of unlabeled faces: tokens, or with crops.device=cuda plain images."""
    if config.crops.device == "cuda":
        return lambda faces: {k: v for k, v in faces.items() if k != "label"}
    cutter = MultiViewTransform(view_settings(config), landmark_network, config.run.seed)

    def cut(faces: Columns) -> Columns:
        image, epoch, shard, key = (faces[name] for name in ("image", "epoch", "shard", "key"))
        tokens = cutter(image, epoch, shard, key, faces.get("landmarks"))
        return {**cast("Columns", tokens), "shard": faces["shard"], "key": faces["key"]}

    return cut


def transform_on_device(
    config: PretrainConfig, landmark_network: nn.Module | None, device: torch.device
) -> Callable[[TensorBatch], TensorBatch]:
    """The same on the training device, for crops.device=cuda."""
    cutter = MultiViewTransform(
        view_settings(config), landmark_network, config.run.seed, device=device
    )

    def prepare(batch: TensorBatch) -> dict[str, Tensor]:
        epoch, shard, key = (batch[name].cpu().numpy() for name in ("epoch", "shard", "key"))
        tokens = cutter(batch["image"], epoch, shard, key, batch.get("landmarks"))
        return cast("TensorBatch", tokens)

    return prepare


def build_lafs(config: PretrainConfig, device: torch.device) -> Lafs:
    """Student, teacher and their heads, weights from torch's current generator."""

    def network() -> LafsNetwork:
        head = DINOHead(
            FVIT_SIZES[config.model.size].width,
            config.head.num_prototypes,
            hidden_dim=config.head.hidden_dim,
            bottleneck_dim=config.head.bottleneck_dim,
        )
        return LafsNetwork(build_transformer(config), head).to(device)

    return Lafs(
        network(),
        network(),
        num_prototypes=config.head.num_prototypes,
        student_temp=config.dino.student_temp,
        center_momentum=config.dino.center_momentum,
        freeze_last_layer_epochs=config.dino.freeze_last_layer_epochs,
        teacher_dropout=config.dino.teacher_dropout,
        centering=config.dino.centering,
    )


def pretrain_values(
    config: PretrainConfig, plan: EpochSampler
) -> Callable[[int], dict[str, float]]:
    """Schedules: a global step to its learning rate, weight decay, momentum and temperature."""
    length, optim, dino = run_length(config, plan), config.optim, config.dino
    total = length.total_steps
    lr = CosineSchedule(
        optim.lr * config.batch_size / 256,
        optim.min_lr,
        total,
        optim.warmup.steps(length.steps_per_epoch, total),
    )
    weight_decay = CosineSchedule(optim.weight_decay, optim.weight_decay_end, total)
    momentum = CosineSchedule(dino.teacher_momentum, 1.0, total)
    temperature = LinearEpochs(
        dino.teacher_temp.start,
        dino.teacher_temp.end,
        dino.teacher_temp.warmup_epochs,
        length.num_epochs,
    )
    return lambda step: {
        "lr": lr(step),
        "weight_decay": weight_decay(step),
        "ema_momentum": momentum(step),
        "teacher_temp": temperature(plan.epoch_of(step)),
    }
