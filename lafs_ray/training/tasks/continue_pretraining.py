"""Pretraining that starts from the student, teacher and center of another one, in a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lafs_ray.config.loader import apply_overrides, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.methods.lafs import Lafs
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PREFIXES,
    PublishedState,
    Role,
    hash_tensors,
    published_state,
    read_checkpoint,
)
from lafs_ray.models.checkpoints.timm_weights import is_timm_state
from lafs_ray.models.landmark_template import TEMPLATE, TEMPLATE_TENSOR
from lafs_ray.models.timm_transformer import size_settings
from lafs_ray.training.checkpoint.checkpoint_file import newest_checkpoint
from lafs_ray.training.checkpoint.inference import open_checkpoint
from lafs_ray.training.tasks.init_weights import (
    Arrays,
    InitWeights,
    as_tensors,
    load_configured,
    read_pretrained,
    transpose_patch_embedding,
)
from lafs_ray.training.tasks.networks import build_transformer
from lafs_ray.training.tasks.pretrain import build_lafs
from lafs_ray.training.tasks.timm_start import start_from_timm

_PATCHES = "backbone.patch_to_embedding.weight"


def adopt_settings(config: PretrainConfig) -> PretrainConfig:
    """Fill in what a configuration leaves to the checkpoint of `start.student`: `model.*` and the landmark CNN.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: the settings do not go together.
    """
    path = config.start.student
    if path is None:
        return config
    changes: dict[str, Any] = {}
    pretrained = read_pretrained("start.student", path)
    if (made := pretrained.architecture) is not None:
        given = config.model.model_fields_set
        # A size that is given stays, and is checked against the checkpoint's tensors.
        donor: dict[str, Any] = {} if given & {"size", "student"} else {**size_settings(made.transformer)}
        donor |= {"num_landmarks": made.num_tokens, "patch_size": made.patch_size}
        donor |= {"token_features": made.token_features}
        if made.landmark_cnn not in (None, TEMPLATE) and config.landmarks.weights is None:
            donor |= {"landmark_cnn": made.landmark_cnn, "landmark_cnn_width": made.landmark_cnn_width}
        changes |= {f"model.{k}": v for k, v in donor.items() if k not in given and v is not None}
    needs_cnn = config.landmarks.source in ("per_view", "per_image")
    if needs_cnn and config.landmarks.weights is None and pretrained.landmarks:
        changes["landmarks.weights"] = path
    if not changes:
        return config
    return resolve(PretrainConfig, apply_overrides(config.model_dump(mode="json"), changes), "start.student")


def with_start(config: PretrainConfig, weights: InitWeights) -> InitWeights:
    """Return initial weights with those of `start.student` and `start.teacher`, and a report of each part.

    Raises:
        CheckpointError: a file is missing, damaged, or its transformer is another than configured.
    """
    path = config.start.student
    if path is None:
        return weights
    with torch.device("meta"):
        expected = build_lafs(config, torch.device("meta")).state_dict()
    report: list[str] = []
    given = (weights.landmarks or {}).get(TEMPLATE_TENSOR)
    landmarks = None if given is None else torch.tensor(given)
    student = _network(config, path, "student", expected["teacher"], report, landmarks)
    source = config.start.teacher or path
    teacher = _network(config, source, "teacher", expected["teacher"], report, landmarks)
    method = {f"teacher.{name}": tensor for name, tensor in teacher.items()}
    has_head = any(name.startswith("head.") for name in teacher)
    center = _center(source) if has_head else None
    if center is not None and center.shape == expected["center"]["center"].shape:
        method["center.center"] = center
        report.append(f"center: taken from {source}")
    else:
        report.append("center: starts at 0, " + ("the checkpoint has none" if has_head else "as the head is new"))
    hashed = hash_tensors({**student, **method})
    arrays = _arrays(student), _arrays(method)
    return replace(weights, student=arrays[0], method=arrays[1], transformer_hash=hashed, report=tuple(report))


def load_start(task: Lafs, weights: InitWeights) -> None:
    """Load student, teacher and center; a head that was not taken is the student's, from scratch, in both."""
    if weights.student is None or weights.method is None:
        return
    task.trainable.load_state_dict({**task.trainable.state_dict(), **as_tensors(weights.student)})
    state: dict[str, dict[str, Tensor]] = {
        "teacher": dict(task.trainable.state_dict()),
        "center": task.center.state_dict(),
    }
    for name, tensor in as_tensors(weights.method).items():
        part, _, inner = name.partition(".")
        state[part][inner] = tensor
    task.load_state_dict(state)


def _network(
    config: PretrainConfig,
    path: str,
    role: Role,
    expected: Mapping[str, Tensor],
    report: list[str],
    landmarks: Tensor | None,
) -> dict[str, Tensor]:
    """Return a network's tensors under `LafsNetwork`'s names: the transformer, and the head where it fits.

    Args:
        config: of the run.
        path: the checkpoint.
        role: which of its networks, and for which of the run's.
        expected: the tensors of the network.
        report: gets a line for each part.
        landmarks: positions of a template, or the mean of given ones, where timm's positions are sampled.
    """
    opened = open_checkpoint(path, role)
    made, state = None, PublishedState()
    if isinstance(opened, NetworkWeights):
        made, state = opened.architecture, opened.state
    else:
        state = published_state(opened.content, role)
    backbone = {n: t for n, t in state.backbone.items() if not n.startswith(LANDMARK_PREFIXES)}
    if is_timm_state(backbone):
        found, lines = start_from_timm(config, backbone, f"start.{role}={path}", landmarks)
        report += [f"{role} from {path}: {line}" for line in [*lines, "head starts from scratch"]]
        return {f"backbone.{name}": tensor for name, tensor in found.items()}
    keys = ("size", "num_landmarks", "patch_size", "token_features")
    load_configured(build_transformer(config), backbone, made, f"start.{role}={path}", keys)
    found = {f"backbone.{n}": t for n, t in backbone.items() if f"backbone.{n}" in expected}
    is_grid, was_grid = config.landmarks.source == "grid", made is not None and made.grid
    if config.model.token_features == "pixels" and is_grid != was_grid:
        found[_PATCHES] = transpose_patch_embedding(found[_PATCHES], config.model.patch_size)
    report.append(f"{role}: transformer taken from {path}, {len(found)} of {len(found)} tensors")
    heads = {name: shape for name, shape in expected.items() if name.startswith("head.")}
    own = {f"head.{name}": tensor for name, tensor in state.head.items()}
    wrong = [
        f"{name} is {list(own[name].shape) if name in own else 'absent'}, here {list(tensor.shape)}"
        for name, tensor in heads.items()
        if name not in own or own[name].shape != tensor.shape
    ]
    if wrong:
        why = "the checkpoint has none" if not own else wrong[0]
        report.append(f"{role}: head starts from scratch: {why}")
        return found
    report.append(f"{role}: head taken, {len(heads)} of {len(heads)} tensors")
    return found | {name: own[name] for name in heads}


def _center(path: str) -> Tensor | None:
    """Return the center of a run's checkpoint or of a published one."""
    content = read_checkpoint(newest_checkpoint(path))
    for outer, inner in (("method", "center"), ("dino_loss", None)):
        state = content.get(outer)
        state = state.get(inner) if inner is not None and isinstance(state, Mapping) else state
        center = state.get("center") if isinstance(state, Mapping) else None
        if isinstance(center, Tensor):
            return center.float()
    return None


def _arrays(state: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items()}
