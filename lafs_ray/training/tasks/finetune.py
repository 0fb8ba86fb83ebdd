"""From the configuration of a supervised run to its view, method, groups and schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.train import IMAGE_SIZE
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.methods.mixup import MixupSchedule
from lafs_ray.methods.optim import layer_of, parameter_groups
from lafs_ray.methods.schedules import CosineSchedule, Staircase
from lafs_ray.methods.supervised import Supervised, SupervisedNetwork
from lafs_ray.models.fvit import FVIT_SIZES, GridFViT, PartFViT
from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.training.input_pipeline import Columns, Transform
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors
from lafs_ray.training.tasks.networks import build_landmark_network, build_transformer
from lafs_ray.transforms.params import supervised_settings
from lafs_ray.transforms.randaugment import RandAugment
from lafs_ray.transforms.random_erasing import erase_
from lafs_ray.transforms.views import supervised_view


def labeled_transform(config: FinetuneConfig) -> Transform:
    """What CPU workers make of labeled faces: one view of each."""
    augmentation = config.augmentation
    strength = augmentation.jitter
    settings = replace(
        supervised_settings(IMAGE_SIZE),
        crop_area=augmentation.crop_area,
        flip=augmentation.flip,
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=strength,
    )
    seed, erasing, area = config.run.seed, augmentation.erasing, augmentation.erasing_area
    change = None
    if augmentation.rand_augment is not None:
        change = RandAugment(augmentation.rand_augment, seed)

    def cut(faces: Columns) -> Columns:
        record = {name: faces[name] for name in ("epoch", "shard", "key")}
        images = faces["image"] if change is None else change(faces["image"], **record)
        views = supervised_view(settings, images, seed, **record).numpy()
        erase_(views, erasing, area, seed, **record)
        return {"images": views, **{n: faces[n] for n in ("label", "shard", "key")}}

    return cut


def build_supervised(
    config: FinetuneConfig,
    num_classes: int,
    start: InitWeights,
    device: torch.device,
    rank: int,
    num_ranks: int,
) -> Supervised:
    """Network, this rank's part of the margin softmax, and anchor.

    Weights come from `start`, else from torch's current generator.
    """
    model: PartFViT | GridFViT
    if config.landmarks.source == "grid":
        transformer = build_transformer(config)
        model = GridFViT(transformer, config.model.patch_size)
    else:
        landmark_network, transformer = build_landmark_network(config), build_transformer(config)
        if start.landmarks is not None:
            landmark_network.load_state_dict(as_tensors(start.landmarks))
        model = PartFViT(landmark_network, transformer, config.model.patch_size)
    if start.transformer is not None:
        transformer.load_state_dict(as_tensors(start.transformer))
    head = PartialFC(
        FVIT_SIZES[config.model.size].width,
        num_classes,
        scale=config.margin.scale,
        margin=config.margin.margin,
        kind=config.margin.kind,
        sample_rate=config.margin.sample_rate,
        seed=config.run.seed,
        rank=rank,
        num_ranks=num_ranks,
    )
    anchor = None
    if config.regularizer.strength > 0:
        assert start.landmarks is not None, "checked when the job was opened"
        anchor = build_landmark_network(config)
        anchor.load_state_dict(as_tensors(start.landmarks))
        anchor.to(device)
    return Supervised(model.to(device), head.to(device), anchor)


def supervised_groups(
    config: FinetuneConfig, network: SupervisedNetwork, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups: rates that fall with the layer, a smaller decay of the landmark trunk."""
    optim, depth = config.optim, FVIT_SIZES[config.model.size].depth

    def lr_scale(name: str) -> float:
        scale = optim.layer_decay ** (depth + 1 - layer_of(name, depth))
        is_of_landmark_cnn = name.startswith(("model.stn.", "model.output_layer."))
        return scale * optim.landmark_lr_scale if is_of_landmark_cnn else scale

    def decay_scale(name: str) -> float:
        return optim.landmark_decay_scale if name.startswith("model.stn.") else 1.0

    return parameter_groups(network, weight_decay, lr_scale, decay_scale)


def supervised_values(
    config: FinetuneConfig, plan: EpochSampler
) -> Callable[[int], dict[str, float]]:
    """Schedules: a global step to its learning rate, weight decay and what the recipe adds."""
    length, optim, regularizer = run_length(config, plan), config.optim, config.regularizer
    per_epoch, total = length.steps_per_epoch, length.total_steps
    warmup = optim.warmup.steps(per_epoch, total)
    # Reference: the peak is reached one step after the warm-up, unlike in pretraining, and the
    # cosine ends one step after the run (golden case f7).
    lr = CosineSchedule(optim.lr, optim.min_lr, total + 1, warmup + 1 if warmup else 0)
    weight = Staircase(
        tuple(
            (end.steps(per_epoch, total), regularizer.strength * value)
            for end, value in regularizer.table
        )
    )

    shares = MixupSchedule(config.mixup.probability, config.mixup.alpha, config.run.seed)
    frozen = {
        f"{part}_frozen": getattr(config.freeze, part).steps(per_epoch, total)
        for part in ("landmarks", "transformer")
    }

    def values(step: int) -> dict[str, float]:
        now = {"lr": lr(step), "weight_decay": optim.weight_decay}
        if regularizer.strength > 0:
            now["regularizer_weight"] = weight(step)
        if shares.probability > 0:
            now["mixup_lam"] = shares(step)
        return now | {name: float(step < end) for name, end in frozen.items() if end > 0}

    return values
