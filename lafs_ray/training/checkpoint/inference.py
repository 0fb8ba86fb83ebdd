"""The network out of a run, a checkpoint or a weights file, ready to embed faces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.architecture import PUBLISHED_HEAD_DIM, Architecture
from lafs_ray.models.checkpoints.convert import (
    Conversion,
    conversion_of,
    from_published,
    with_landmark_cnn,
)
from lafs_ray.models.checkpoints.safetensors_file import (
    NetworkWeights,
    has_description,
    read_weights,
)
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PARTS,
    LAYOUTS,
    PublishedState,
    published_state,
    read_checkpoint,
)
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.training.checkpoint.run_dir import FORMAT, newest_checkpoint

Role = Literal["teacher", "student"]


def load_embedder(path: str, *, trained: bool = True) -> FaceEmbedder:
    """The network of a checkpoint in eval mode: a pretraining run's teacher, or a supervised one's.

    Args:
        path: a checkpoint, the folder of a run, which stands for its newest checkpoint, or a
            weights file (.safetensors).
        trained: whether the transformer gets its weights; else it stays as initialized from the
            run's seed, to compare with. The landmark CNN has its weights in both cases.

    Raises:
        CheckpointError: the file is missing, damaged, not ours, does not fit its own description,
            or lacks a landmark CNN.
    """
    return load_for_inference(path).embedder(trained=trained)


def load_for_inference(path: str, role: Role = "teacher") -> NetworkWeights:
    """A network and its description, heads included.

    Args:
        path: as in `load_embedder`.
        role: which network of a pretraining checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or not ours.
    """
    uri = newest_checkpoint(path)
    if has_description(uri):
        return read_weights(uri)
    content = read_checkpoint(uri)
    if not _is_own(content):
        raise CheckpointError(
            uri,
            found=f"a checkpoint that is not lafs_ray's; keys {', '.join(list(content)[:4])}",
            expected="a run, its checkpoint (step-*.pt), or a weights file (.safetensors)",
            fix=f"if it is a published one: python jobs/convert_weights.py {uri} OUT.safetensors",
        )
    return _of_checkpoint(content, uri, role)


def convert(
    path: str,
    *,
    role: Role = "teacher",
    landmarks: str | None = None,
    head_dim: int = PUBLISHED_HEAD_DIM,
    grid: bool = False,
    heads: bool = False,
) -> Conversion:
    """Any checkpoint as weights, published ones included, with an account of its names.

    Args:
        path: as in `load_embedder`, or a published checkpoint.
        role: which network of a pretraining checkpoint.
        landmarks: a checkpoint of either kind whose landmark CNN is added.
        head_dim: width of an attention head of a published checkpoint.
        grid: whether a published transformer was trained on plain grid patches.
        heads: keep DINO head and class weight.

    Raises:
        CheckpointError: the file is missing, damaged, or of another architecture.
    """
    conversion = _converted(path, role, head_dim=head_dim, grid=grid, heads=heads)
    if landmarks is None:
        return conversion
    theirs = _converted(landmarks, "teacher", head_dim=head_dim, grid=False, heads=False)
    return with_landmark_cnn(conversion, theirs.weights)


def _converted(path: str, role: Role, *, head_dim: int, grid: bool, heads: bool) -> Conversion:
    uri = newest_checkpoint(path)
    if has_description(uri):
        return conversion_of(read_weights(uri), heads=heads)
    content = read_checkpoint(uri)
    if _is_own(content):
        return conversion_of(_of_checkpoint(content, uri, role), heads=heads)
    return from_published(content, uri, role=role, head_dim=head_dim, grid=grid, heads=heads)


def _is_own(content: Mapping[str, Any]) -> bool:
    return {"format", "kind", "config"} <= content.keys()


def _of_checkpoint(content: Mapping[str, Any], uri: str, role: Role) -> NetworkWeights:
    """The network of a run's checkpoint."""
    if content["format"] != FORMAT:
        raise CheckpointError(
            uri,
            found=f"format {content['format']}",
            expected=f"format {FORMAT}",
            fix="read it with the version of lafs_ray that wrote it",
        )
    if content["kind"] == PretrainConfig.__name__:
        config: PretrainConfig | FinetuneConfig = resolve(PretrainConfig, content["config"], uri)
        network = content["method"]["teacher"] if role == "teacher" else content["model"]
        state = published_state({role: network}, role)
        state.backbone.update(content["landmarks"] or {})
        layout, source = LAYOUTS[role], f"{uri}, {role}"
    else:
        config = resolve(FinetuneConfig, content["config"], uri)
        state, layout, source = _supervised_state(content["model"]), LAYOUTS[None], uri
    model = config.model
    on_grid = not any(name.startswith(LANDMARK_PARTS) for name in state.backbone)
    architecture = Architecture(
        model.num_landmarks,
        FVIT_SIZES[model.size],
        model.patch_size,
        landmark_cnn=None if on_grid else model.landmark_cnn,
        landmark_cnn_width=1.0 if on_grid else model.landmark_cnn_width,
        grid=on_grid,
    )
    return NetworkWeights(
        architecture,
        state,
        source,
        layout,
        content["step"],
        seed=config.run.seed,
        init_std=model.init_std,
    )


def _supervised_state(trainable: Mapping[str, Tensor]) -> PublishedState:
    """Part fViT and its margin softmax, told apart."""
    backbone = {n.removeprefix("model."): v for n, v in trainable.items() if n.startswith("model.")}
    loss = {n.removeprefix("head."): v for n, v in trainable.items() if n.startswith("head.")}
    return PublishedState(backbone, loss=loss)


def inference_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name}",
            found=str(error).splitlines()[0],
            expected="cpu, or a device that this build of PyTorch sees, such as cuda or cuda:1",
            fix="name another --device",
        ) from None
    return device
