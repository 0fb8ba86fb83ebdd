"""Open any checkpoint of a network: a run, its checkpoint, a safetensors or a published file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.finetune_model import FinetuneModel
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.convert import Conversion, add_landmark_cnn, from_published, report_conversion
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, read_weights
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PREFIXES,
    LAYOUTS,
    PublishedState,
    Role,
    published_state,
    read_checkpoint,
)
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.landmark_head import DIRECT_TENSOR
from lafs_ray.models.landmark_template import TEMPLATE, is_template
from lafs_ray.models.lora import merge_lora
from lafs_ray.models.readout import fold_map
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.checkpoint.checkpoint_file import FORMAT, newest_checkpoint


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint without a description: of the released code, or of another program.

    Args:
        uri: the file.
        content: what `read_checkpoint` returned.
    """

    uri: str
    content: Mapping[str, Any]


def open_checkpoint(path: str, role: Role = "teacher") -> NetworkWeights | PublishedCheckpoint:
    """Read a checkpoint and decide what kind of file it is; nothing in it is executed.

    Args:
        path: a checkpoint of a run, the folder of a run, which stands for its newest checkpoint, a weights file
            (.safetensors), or a published checkpoint.
        role: which network of a pretraining run.

    Returns:
        Tensors and architecture of a run or a weights file, heads included; a published checkpoint as it is.

    Raises:
        CheckpointError: the file is missing, damaged, or of a newer format.
        ConfigError: the configuration in a run's checkpoint is not valid.
    """
    uri = newest_checkpoint(path)
    if (weights := read_weights(uri)) is not None:
        return weights
    content = read_checkpoint(uri)
    if {"format", "kind", "config"} <= content.keys():
        return _run_weights(content, uri, role)
    return PublishedCheckpoint(uri, content)


def load_embedder(path: str, *, trained: bool = True) -> FaceEmbedder:
    """Load the network that embeds faces, in eval mode: the teacher of a pretraining run.

    Args:
        path: as in `load_for_inference`.
        trained: whether the transformer gets its weights; else it stays as initialized from the run's seed, for
            comparison. The landmark CNN has its weights in both cases.

    Raises:
        CheckpointError: as `load_for_inference`; or tensors do not fit their own description, or there is no landmark
            CNN.
    """
    return load_for_inference(path).embedder(trained=trained)


def load_for_inference(path: str, role: Role = "teacher") -> NetworkWeights:
    """Load a network and its description, heads included.

    Args:
        path: as in `open_checkpoint`; published checkpoints are refused.
        role: which network of a pretraining run.

    Raises:
        CheckpointError: the file is missing, damaged or without a description.
    """
    opened = open_checkpoint(path, role)
    if isinstance(opened, NetworkWeights):
        return opened
    keys = ", ".join(list(opened.content)[:4])
    raise CheckpointError(
        opened.uri,
        found=f"a checkpoint that was not written by lafs_ray; keys {keys}",
        expected="a run, its checkpoint (step-*.pt), or a weights file (.safetensors)",
        fix=f"convert a published one: lafs convert {opened.uri} OUT.safetensors",
    )


def convert(
    path: str,
    *,
    role: Role = "teacher",
    landmarks: str | None = None,
    head_dim: int | None = None,
    grid: bool = False,
    heads: bool = False,
) -> Conversion:
    """Convert a checkpoint of any kind to weights, with a report on every tensor's name.

    Args:
        path: as in `open_checkpoint`.
        role: which network of a pretraining checkpoint.
        landmarks: a checkpoint of any kind whose landmark CNN is added.
        head_dim: width of an attention head of a published checkpoint; None: as recorded or assumed.
        grid: whether a published transformer was trained on plain grid patches.
        heads: keep DINO head and class weight.

    Raises:
        CheckpointError: the file is missing, damaged, or of another architecture.
    """

    def one(path: str, role: Role, *, grid: bool) -> Conversion:
        opened = open_checkpoint(path, role)
        if isinstance(opened, NetworkWeights):
            return report_conversion(opened, heads=heads)
        published = opened.content, opened.uri
        return from_published(*published, role=role, head_dim=head_dim, grid=grid, heads=heads)

    conversion = one(path, role, grid=grid)
    if landmarks is None:
        return conversion
    return add_landmark_cnn(conversion, one(landmarks, "teacher", grid=False).weights)


def _run_weights(content: Mapping[str, Any], uri: str, role: Role) -> NetworkWeights:
    """Return the network of a run's checkpoint.

    Raises:
        CheckpointError: it is of another format.
        ConfigError: its configuration is not valid.
    """
    if content["format"] != FORMAT:
        raise CheckpointError(
            uri,
            found=f"format {content['format']}",
            expected=f"format {FORMAT}",
            fix="read it with the version of lafs_ray that wrote it",
        )
    config: PretrainConfig | FinetuneConfig | LandmarkConfig
    if content["kind"] == PretrainConfig.__name__:
        config = resolve(PretrainConfig, content["config"], uri, stored=True)
        network = content["method"]["teacher"] if role == "teacher" else content["model"]
        state = published_state({role: network}, role)
        state.backbone.update(content["landmarks"] or {})
        layout, source = LAYOUTS[role], f"{uri}, {role}"
    elif content["kind"] == LandmarkConfig.__name__:
        config = resolve(LandmarkConfig, content["config"], uri, stored=True)
        state, layout, source = PublishedState(dict(content["model"])), LAYOUTS[None], uri
    else:
        config = resolve(FinetuneConfig, content["config"], uri, stored=True)
        state, layout, source = _supervised_state(content["model"]), LAYOUTS[None], uri
        if config.lora.rank is not None:
            state = replace(state, backbone=merge_lora(state.backbone, config.lora.scale))
    model = config.model
    has_cnn = any(name.startswith(LANDMARK_PREFIXES) for name in state.backbone)
    landmark_cnn = TEMPLATE if is_template(state.backbone) else model.landmark_cnn
    has_transformer = not isinstance(config, LandmarkConfig)
    architecture = Architecture(
        model.num_landmarks,
        configured_size(model) if has_transformer else None,
        model.patch_size if has_transformer else None,
        landmark_cnn=landmark_cnn if has_cnn else None,
        landmark_scaling="direct" if DIRECT_TENSOR in state.backbone else "span",
        landmark_cnn_width=model.landmark_cnn_width if has_cnn and landmark_cnn != TEMPLATE else 1.0,
        grid=not has_cnn,
        token_features=model.token_features,
        readout=model.readout if isinstance(model, FinetuneModel) else "class",
        whitened_dim=model.whitened_dim if isinstance(model, FinetuneModel) else None,
    )
    step, seed = content["step"], config.run.seed
    settings = config.model_dump(mode="json", exclude_defaults=True)
    return NetworkWeights(architecture, state, source, layout, step, seed, model.init_std, settings)


def _supervised_state(trainable: Mapping[str, Tensor]) -> PublishedState:
    """Separate Part fViT from its margin softmax."""
    backbone = {n.removeprefix("model."): v for n, v in trainable.items() if n.startswith("model.")}
    loss = {n.removeprefix("head."): v for n, v in trainable.items() if n.startswith("head.")}
    return PublishedState(fold_map(backbone), loss=loss)


def inference_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        ConfigError: torch does not know it, or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name}",
            found=str(error).splitlines()[0],
            expected="cpu, or a device that this build of PyTorch sees, such as cuda or cuda:1",
            fix="pass another --device",
        ) from None
    return device
