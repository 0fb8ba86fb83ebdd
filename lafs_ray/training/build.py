"""From a configuration to what the loop trains: the only translation between the two."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import IMAGE_SIZE, PretrainConfig
from lafs_ray.config.sections import Job
from lafs_ray.data import storage
from lafs_ray.data.faces import FaceSet
from lafs_ray.data.plan import OrderPlan
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.method.draws import ViewSettings, supervised_settings
from lafs_ray.method.lafs import Lafs, LafsNetwork
from lafs_ray.method.optim import parameter_groups
from lafs_ray.method.schedules import CosineSchedule, LinearEpochs
from lafs_ray.method.supervised import Supervised
from lafs_ray.method.views import ViewCutter, supervised_view
from lafs_ray.models.fvit import FVIT_SIZES, FViT, PartFViT, build_fvit
from lafs_ray.models.heads import DINOHead, MarginSoftmax
from lafs_ray.models.landmarks import (
    LandmarkCNN,
    TimmLandmarks,
    build_landmark_cnn,
    start_on_grid_,
)
from lafs_ray.models.weights import load_weights, published_state, read_checkpoint
from lafs_ray.training.loop import Method, TensorBatch, Training
from lafs_ray.training.state import newest_checkpoint
from lafs_ray.training.stream import Columns, Cut

_INIT_STREAM = 0x696E6974
_SHOWN = 9
_PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Length:
    """How long a run is, once the size of the set is known."""

    steps_per_epoch: int
    total_steps: int
    save_every: int

    @property
    def num_epochs(self) -> int:
        """Epochs begun."""
        return math.ceil(self.total_steps / self.steps_per_epoch)


def build_plan(config: Job, faces: FaceSet) -> OrderPlan:
    """The order of records of a run.

    Raises:
        ConfigError: the batch is larger than the set.
    """
    if config.batch_size > faces.num_images:
        raise ConfigError(
            "batch_size",
            found=f"{config.batch_size}, but {config.data.path} holds {faces.num_images} images",
            expected="a batch no larger than the set",
            fix=f"lower batch_size to at most {faces.num_images}",
        )
    return OrderPlan(
        faces.num_images, config.batch_size, config.run.seed, config.data.chunk_records
    )


def run_length(config: Job, plan: OrderPlan) -> Length:
    """Steps of the run and between checkpoints.

    Raises:
        ConfigError: a warm-up is longer than the run.
    """
    per_epoch = plan.steps_per_epoch
    total = max(config.duration.steps(per_epoch), 1)
    length = Length(per_epoch, total, max(config.checkpoints.every.steps(per_epoch, total), 1))
    if isinstance(config, PretrainConfig):
        _check_fits(
            "dino.teacher_temp.warmup_epochs",
            config.dino.teacher_temp.warmup_epochs,
            length.num_epochs,
            "epochs",
        )
    if isinstance(config, PretrainConfig | FinetuneConfig):
        warmup = config.optim.warmup.steps(per_epoch, total)
        _check_fits("optim.warmup", warmup, total, f"steps ({per_epoch} an epoch)")
    return length


def _check_fits(key: str, warmup: int, run: int, unit: str) -> None:
    if warmup > run:
        raise ConfigError(
            key,
            found=f"{warmup} of a run of {run} {unit}",
            expected="a warm-up no longer than the run",
            fix=f"lower {key}, or make duration longer",
        )


def build_landmark_network(
    config: PretrainConfig | FinetuneConfig,
) -> LandmarkCNN | TimmLandmarks:
    """The landmark CNN, weights from torch's current generator."""
    model = config.model
    network = build_landmark_cnn(model.landmark_cnn, model.num_landmarks, model.landmark_cnn_width)
    if model.landmark_start == "grid":
        start_on_grid_(network)
    return network


def build_transformer(config: PretrainConfig | FinetuneConfig) -> FViT:
    """The fViT, weights from torch's current generator."""
    model = config.model
    return build_fvit(
        FVIT_SIZES[model.size],
        num_tokens=model.num_landmarks,
        token_dim=3 * model.patch_size**2,
        dropout=model.dropout,
        drop_path=model.drop_path,
        init_std=model.init_std,
    )


def load_landmark_weights(config: PretrainConfig) -> dict[str, Tensor] | None:
    """The frozen landmark CNN's weights; None for a run on grid patches.

    Raises:
        CheckpointError: the file is missing, damaged or of another landmark CNN.
        ConfigError: the landmark CNN's name is unknown.
    """
    if config.landmarks.source == "grid":
        return None
    torch.manual_seed(config.run.seed ^ _INIT_STREAM)
    network = build_landmark_network(config)
    weights = config.landmarks.weights
    assert weights is not None, "the configuration requires it"
    if weights != "untrained":
        try:
            load_weights(network, landmark_state(weights))
        except CheckpointError as error:
            lines = error.found.splitlines()
            raise CheckpointError(
                f"landmarks.weights={weights}: {error.subject}",
                found="\n".join([*lines[:_SHOWN], *(["    …"] if len(lines) > _SHOWN else [])]),
                expected=error.expected,
                fix="name a checkpoint with a landmark CNN, and set model.num_landmarks and "
                "model.landmark_cnn* as in the run that made it",
            ) from None
    return dict(network.state_dict())


def landmark_state(weights: str) -> dict[str, Tensor]:
    """Tensors of a landmark CNN, by its own names, from a checkpoint of ours or a published one.

    Args:
        weights: a checkpoint, or the folder of a run, which stands for its newest checkpoint.
    """
    content = _read(newest_checkpoint(weights))
    if content.get("landmarks"):
        return dict(content["landmarks"])
    # In a stage-1 checkpoint of ours Part fViT stands beside its margin softmax.
    tensors = published_state(content).backbone
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _read(uri: str) -> dict[str, Any]:
    path = storage.local_path(uri)
    if path is not None:
        return read_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / uri.partition("?")[0].rpartition("/")[2]
        copy.write_bytes(storage.read_bytes(uri))
        return read_checkpoint(copy)


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
        grey=views.grey,
        blur=views.blur,
        blur_sigma=views.blur_sigma_px,
        solarise=views.solarise,
        landmark_noise_px=landmarks.noise_px,
        local_tokens=landmarks.local_tokens,
        shuffle=landmarks.shuffle,
        replacement=landmarks.replacement,
        landmark_source=landmarks.source,
    )


def build_cut(config: Job, landmark_network: nn.Module | None) -> Cut:
    """What CPU workers make of decoded faces.

    Args:
        config: the run's configuration.
        landmark_network: the frozen landmark CNN of a pretraining run; None for `grid`.
    """
    if isinstance(config, FinetuneConfig):
        return _labelled_cut(config)
    assert isinstance(config, PretrainConfig)
    if config.crops.device == "cuda":
        return lambda faces: {k: v for k, v in faces.items() if k != "label"}
    cutter = ViewCutter(view_settings(config), landmark_network, config.run.seed)

    def cut(faces: Columns) -> Columns:
        tokens = cutter(faces["image"], faces["epoch"], faces["shard"], faces["key"])
        return {**cast("Columns", tokens), "shard": faces["shard"], "key": faces["key"]}

    return cut


def _labelled_cut(config: FinetuneConfig) -> Cut:
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

    def cut(faces: Columns) -> Columns:
        record = (faces["epoch"], faces["shard"], faces["key"])
        images = supervised_view(settings, faces["image"], config.run.seed, *record)
        return {"images": images.numpy(), **{n: faces[n] for n in ("label", "shard", "key")}}

    return cut


def build_training(
    config: Job,
    plan: OrderPlan,
    num_classes: int | None,
    landmark_network: nn.Module | None,
    device: torch.device,
    rank: int = 0,
) -> Training:
    """Networks, optimiser and schedules of a run on one rank, at their start.

    Args:
        config: the run's configuration.
        plan: order of the records.
        num_classes: identities of a labelled set.
        landmark_network: the frozen landmark CNN of a pretraining run; None for `grid`.
        device: where to train.
        rank: this rank.
    """
    torch.manual_seed(config.run.seed ^ _INIT_STREAM)
    prepare: Callable[[TensorBatch], TensorBatch] = lambda batch: batch  # noqa: E731
    clip_grad = None
    lr_scale: Callable[[str], float] = lambda _: 1.0  # noqa: E731
    if isinstance(config, PretrainConfig):
        method: Method = _lafs(config, device)
        values = _pretrain_values(config, plan)
        clip_grad = config.optim.clip_grad
        if config.crops.device == "cuda":
            prepare = _cut_on_device(config, landmark_network, device)
    else:
        assert isinstance(config, FinetuneConfig)
        assert num_classes is not None, "supervised training needs labels"
        method = _supervised(config, num_classes, device)
        landmark_scale = config.optim.landmark_lr_scale
        lr_scale = lambda name: landmark_scale if _is_of_landmark_cnn(name) else 1.0  # noqa: E731
        values = _supervised_values(config, plan)
    first = values(0)
    optimizer = torch.optim.AdamW(
        parameter_groups(method.trainable, first["weight_decay"], lr_scale),
        lr=first["lr"],
        fused=device.type == "cuda",
    )
    return Training(
        method=method,
        network=method.trainable,
        optimizer=optimizer,
        values=values,
        prepare=prepare,
        device=device,
        precision=_PRECISIONS[config.compute.precision],
        seed=config.run.seed,
        rank=rank,
        accumulation=config.accumulation,
        clip_grad=clip_grad,
        max_bad_records=config.data.max_bad_records,
    )


def _is_of_landmark_cnn(name: str) -> bool:
    return name.startswith(("model.stn.", "model.output_layer."))


def _cut_on_device(
    config: PretrainConfig, landmark_network: nn.Module | None, device: torch.device
) -> Callable[[TensorBatch], TensorBatch]:
    cutter = ViewCutter(view_settings(config), landmark_network, config.run.seed, device=device)

    def prepare(batch: TensorBatch) -> dict[str, Tensor]:
        names = ("epoch", "shard", "key")
        tokens = cutter(batch["image"], *(batch[name].cpu().numpy() for name in names))
        return cast("TensorBatch", tokens)

    return prepare


def _lafs(config: PretrainConfig, device: torch.device) -> Lafs:
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
        centre_momentum=config.dino.centre_momentum,
        freeze_last_layer_epochs=config.dino.freeze_last_layer_epochs,
        teacher_dropout=config.dino.teacher_dropout,
    )


def _supervised(config: FinetuneConfig, num_classes: int, device: torch.device) -> Supervised:
    model = PartFViT(
        build_landmark_network(config), build_transformer(config), config.model.patch_size
    )
    head = MarginSoftmax(
        FVIT_SIZES[config.model.size].width,
        num_classes,
        scale=config.margin.scale,
        margin=config.margin.margin,
    )
    return Supervised(model.to(device), head.to(device))


def _pretrain_values(config: PretrainConfig, plan: OrderPlan) -> Callable[[int], dict[str, float]]:
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


def _supervised_values(
    config: FinetuneConfig, plan: OrderPlan
) -> Callable[[int], dict[str, float]]:
    length, optim = run_length(config, plan), config.optim
    warmup = optim.warmup.steps(length.steps_per_epoch, length.total_steps)
    lr = CosineSchedule(optim.lr, optim.min_lr, length.total_steps, warmup)
    return lambda step: {"lr": lr(step), "weight_decay": optim.weight_decay}
