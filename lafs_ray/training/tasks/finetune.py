"""From the configuration of a supervised run to its view, task, groups and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.finetune import Augmentation, FinetuneConfig
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.errors import ConfigError
from lafs_ray.methods.mixup import MixupSchedule
from lafs_ray.methods.optim import CosineSchedule, Staircase, layer_of, parameter_groups, released_top
from lafs_ray.methods.supervised import Supervised, SupervisedNetwork
from lafs_ray.models.fvit import FViT
from lafs_ray.models.lora import add_lora_
from lafs_ray.models.part_fvit import GridFViT, PartFViT
from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.input_pipeline import Columns, Transform
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors
from lafs_ray.training.tasks.networks import build_landmark_network, build_transformer, build_whitening, read_dim
from lafs_ray.transforms.params import ViewSettings
from lafs_ray.transforms.randaugment import RandAugment
from lafs_ray.transforms.random_erasing import erase_
from lafs_ray.transforms.views import supervised_view

# torchvision's range of RandomResizedCrop, as in timm's transforms.
_CROP_ASPECT = (3 / 4, 4 / 3)


def single_view_settings(augmentation: Augmentation) -> ViewSettings:
    """Return the settings of the one view of supervised training: crop, flip and color jitter."""
    strength = augmentation.jitter
    return ViewSettings(
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_SIZE,
        token_features="pixels",
        num_landmarks=1,
        num_global=1,
        num_local=0,
        crop_area=augmentation.crop_area,
        crop_aspect=_CROP_ASPECT,
        local_crop_area=augmentation.crop_area,
        flip=augmentation.flip,
        opposite_flips=False,
        jitter=1.0,
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=strength,
        gray=0.0,
        blur=(0.0, 0.0, 0.0),
        blur_sigma_px=(0.0, 0.0),
        solarize=0.0,
        source="grid",
        noise_px=0.0,
        local_tokens=1,
        shuffle=False,
        replacement=False,
    )


def finetune_transform(config: FinetuneConfig) -> Transform:
    """Return the transform of CPU workers: labeled faces to one view of each."""
    augmentation, seed = config.augmentation, config.run.seed
    settings = single_view_settings(augmentation)
    rand_augment = None
    if augmentation.rand_augment is not None:
        rand_augment = RandAugment(augmentation.rand_augment, seed)

    def transform(faces: Columns) -> Columns:
        record = {name: faces[name] for name in ("epoch", "shard", "key")}
        images = faces["image"]
        if rand_augment is not None:
            images = rand_augment(images, **record)
        views = supervised_view(settings, images, seed, **record).numpy()
        erase_(views, augmentation.erasing, augmentation.erasing_area, seed, **record)
        return {"images": views, **{n: faces[n] for n in ("label", "shard", "key")}}

    return transform


def build_supervised(
    config: FinetuneConfig, num_classes: int, init_weights: InitWeights, device: torch.device, rank: int, num_ranks: int
) -> Supervised:
    """Build the network, this rank's shard of the margin softmax, and the anchor.

    Weights come from `init_weights`, else from torch's current generator.
    """
    model: PartFViT | GridFViT
    whitening = build_whitening(config)
    if whitening is not None and init_weights.whitening is not None:
        whitening.load_state_dict(as_tensors(init_weights.whitening))
    embeds = config.model.patch_size, config.model.token_features, config.model.readout, whitening
    if config.landmarks.source == "grid":
        transformer = build_transformer(config)
        model = GridFViT(transformer, *embeds)
    else:
        landmark_network, transformer = build_landmark_network(config), build_transformer(config)
        if init_weights.landmarks is not None:
            landmark_network.load_state_dict(as_tensors(init_weights.landmarks))
        model = PartFViT(landmark_network, transformer, *embeds)
    if init_weights.transformer is not None:
        transformer.load_state_dict(as_tensors(init_weights.transformer))
    _freeze(config, transformer)
    head = PartialFC(
        config.model.whitened_dim or read_dim(config),
        num_classes,
        **dict(config.margin),
        seed=config.run.seed,
        rank=rank,
        num_ranks=num_ranks,
    )
    anchor = None
    if config.regularizer.strength > 0:
        assert init_weights.landmarks is not None, "checked by FinetuneConfig"
        anchor = build_landmark_network(config)
        anchor.load_state_dict(as_tensors(init_weights.landmarks))
        anchor.to(device)
    return Supervised(model.to(device), head.to(device), anchor, config.freeze.blocks or 0)


def require_blocks(config: FinetuneConfig) -> None:
    """Check that the transformer has the blocks that are frozen, and one more for LoRA.

    Raises:
        ConfigError: it has not.
    """
    depth, frozen = configured_size(config.model).depth, config.freeze.blocks or 0
    most = depth if config.lora.rank is None else depth - 1
    if frozen > most:
        raise ConfigError(
            "freeze.blocks",
            found=f"{frozen}, of a transformer of {depth} blocks",
            expected=f"at most {most}" + (", as lora.rank changes a block at least" if most < depth else ""),
            fix="reduce it",
        )


def _freeze(config: FinetuneConfig, transformer: FViT) -> None:
    """Freeze the parts of the transformer that are never trained; with LoRA, add what is trained in their place."""
    frozen, blocks = config.freeze.blocks or 0, transformer.transformer.layers
    if config.lora.rank is not None:
        transformer.requires_grad_(False)
        add_lora_(blocks[frozen:], config.lora.rank, config.lora.scale)
    elif frozen:
        transformer.patch_to_embedding.requires_grad_(False)
        transformer.cls_token.requires_grad_(False)
        transformer.pos_embedding.requires_grad_(False)
        blocks[:frozen].requires_grad_(False)


def supervised_groups(config: FinetuneConfig, network: SupervisedNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: layer-wise lr decay, a smaller decay of the landmark trunk."""
    optim, depth = config.optim, configured_size(config.model).depth

    def lr_scale(name: str) -> float:
        scale = optim.layer_decay ** (depth + 1 - layer_of(name, depth))
        is_of_landmark_cnn = name.startswith(("model.stn.", "model.output_layer."))
        return scale * optim.landmark_lr_scale if is_of_landmark_cnn else scale

    def decay_scale(name: str) -> float:
        return optim.landmark_decay_scale if name.startswith("model.stn.") else 1.0

    return parameter_groups(network, weight_decay, lr_scale, decay_scale)


def supervised_hparams(config: FinetuneConfig, sampler: EpochSampler) -> Callable[[int], dict[str, float]]:
    """Return the schedules: a global step to lr, weight decay and those of enabled options."""
    length, optim, regularizer = run_length(config, sampler), config.optim, config.regularizer
    per_epoch, total = length.steps_per_epoch, length.total_steps
    warmup = optim.warmup.steps(per_epoch, total)
    # Reference: the peak is reached one step after the warm-up, unlike in pretraining, and the cosine ends one step
    # after the run (tests/golden/f7_finetune_schedule).
    is_released = optim.handover == "released" and warmup > 0
    top = released_top(config.peak_lr, optim.min_lr, total - warmup) if is_released else None
    lr = CosineSchedule(config.peak_lr, optim.min_lr, total + 1, warmup + 1 if warmup else 0, top=top)
    weight = Staircase(
        tuple((end.steps(per_epoch, total), regularizer.strength * value) for end, value in regularizer.table)
    )

    mixup_lam = MixupSchedule(**dict(config.mixup), seed=config.run.seed)
    frozen = {
        f"{part}_frozen": getattr(config.freeze, part).steps(per_epoch, total) for part in ("landmarks", "transformer")
    }

    def hparams(step: int) -> dict[str, float]:
        now = {"lr": lr(step), "weight_decay": optim.weight_decay}
        if regularizer.strength > 0:
            now["regularizer_weight"] = weight(step)
        if mixup_lam.probability > 0:
            now["mixup_lam"] = mixup_lam(step)
        return now | {name: float(step < end) for name, end in frozen.items() if end > 0}

    return hparams
