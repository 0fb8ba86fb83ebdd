"""From the configuration of a pretraining run to its views, task and schedules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import Model
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS, DINOHead
from lafs_ray.methods.lafs import Lafs, LafsNetwork, LafsSchedules
from lafs_ray.methods.optim import CosineSchedule, LinearEpochs
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.input_pipeline import Columns, Transform
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.networks import build_transformer
from lafs_ray.transforms.device_views import DeviceViews
from lafs_ray.transforms.packed_faces import PACKED, PackedLayout
from lafs_ray.transforms.params import ViewSettings, sample_view_params
from lafs_ray.transforms.views import MultiViewTransform


def view_settings(model: Model, views: Views, landmarks: PretrainLandmarks) -> ViewSettings:
    """Return the settings of the views of a pretraining run."""
    return ViewSettings(
        image_size=IMAGE_SIZE,
        patch_size=model.patch_size,
        token_features=model.token_features,
        num_landmarks=model.num_landmarks,
        num_global=NUM_GLOBAL_VIEWS,
        local_tokens=views.local_tokens(landmarks),
        **dict(views),
        **landmarks.model_dump(exclude={"weights", "cache", "template", "local_tokens"}),
    )


def pretrain_transform(config: PretrainConfig, landmark_network: nn.Module | None) -> Transform:
    """Return the transform of CPU workers: faces to tokens; with crops.device=cuda, faces to `packed_faces`."""
    settings = view_settings(config.model, config.views, config.landmarks)
    if config.crops.device == "cuda":
        return packing_transform(settings, config.run.seed)
    return MultiViewTransform(settings, landmark_network, config.run.seed).transform_columns


def packing_transform(settings: ViewSettings, seed: int) -> Transform:
    """Return the transform of CPU workers where a GPU makes the views: faces with sampled parameters, packed."""
    layout = PackedLayout(settings)

    def transform(faces: Columns) -> Columns:
        record = {name: faces[name] for name in ("epoch", "shard", "key")}
        params = sample_view_params(settings, seed, **record)
        packed = layout.pack(faces["image"], params, faces.get("landmarks"))
        return {PACKED: packed, "shard": faces["shard"], "key": faces["key"]}

    return transform


def device_views(config: PretrainConfig, landmark_network: nn.Module | None, device: torch.device) -> DeviceViews:
    """Return the transform of the training device, for crops.device=cuda."""
    settings = view_settings(config.model, config.views, config.landmarks)
    return DeviceViews(settings, landmark_network, device)


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
            dino.teacher_temp.start, dino.teacher_temp.end, config.teacher_warmup_epochs, length.num_epochs
        ),
        steps_per_epoch=length.steps_per_epoch,
    )
