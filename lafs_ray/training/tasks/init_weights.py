"""Weights that a run takes from other runs: the landmark CNN and the pretrained transformer.

They are read and checked once, where the job is opened, and travel as arrays, which Ray's processes
on a node share without copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.safetensors_file import (
    NetworkWeights,
    has_description,
    read_weights,
)
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PARTS,
    digest,
    load_weights,
    published_state,
    read_checkpoint,
)
from lafs_ray.training.checkpoint.run_dir import newest_checkpoint
from lafs_ray.training.tasks.networks import build_landmark_network, build_transformer, seed_weights

Arrays = dict[str, NDArray[Any]]

UNTRAINED = "untrained"

_SHOWN = 9


@dataclass(frozen=True)
class InitWeights:
    """Weights that a run begins with, by the names of their module.

    Args:
        landmarks: of the landmark CNN: frozen in pretraining; in finetuning where its landmarks
            begin, and what the regularizer holds them to. None: over the grid, or from scratch.
        transformer: of the fViT; None: from scratch.
        landmarks_hash: of the landmark weights, if they came from a file.
        transformer_hash: of the transformer's.
    """

    landmarks: Arrays | None = None
    transformer: Arrays | None = None
    landmarks_hash: str | None = None
    transformer_hash: str | None = None


@dataclass(frozen=True)
class Source:
    """What a checkpoint offers to start from.

    Args:
        transformer: tensors for `FViT`; of a pretraining run those of its teacher.
        landmarks: tensors for the landmark CNN; empty where it has none.
        on_grid: whether the transformer was trained on plain grid patches.
        settings: what is known of `model.*` where it was made; nothing of a published file.
    """

    transformer: dict[str, Tensor]
    landmarks: dict[str, Tensor]
    on_grid: bool
    settings: dict[str, Any]


def load_init_weights(config: TrainConfig) -> InitWeights:
    """The weights that a configuration names.

    Raises:
        CheckpointError: a file is missing, damaged or of another architecture.
        ConfigError: a landmark CNN is needed and not named, or its name is unknown.
    """
    if isinstance(config, PretrainConfig):
        return _load_pretraining(config)
    assert isinstance(config, FinetuneConfig)
    return _load_finetuning(config)


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Copies of the arrays as tensors; those that Ray shares are read-only."""
    return {name: torch.tensor(array) for name, array in arrays.items()}


def read_source(key: str, path: str) -> Source:
    """The networks in a checkpoint or weights file of ours, or in a published checkpoint.

    Args:
        key: the setting that names it, for messages.
        path: a checkpoint, or the folder of a run, which stands for its newest checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no tensors.
    """
    try:
        uri = newest_checkpoint(path)
        if has_description(uri):
            return _described(read_weights(uri))
        content = read_checkpoint(uri)
        is_pretraining = content.get("kind") == PretrainConfig.__name__
        backbone = published_state(content["method"] if is_pretraining else content).backbone
    except CheckpointError as error:
        parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
        place = "" if error.subject == path else f": {error.subject}"
        raise CheckpointError(f"{key}={path}{place}", **parts) from None
    # In a supervised checkpoint of ours the network stands beside its margin softmax.
    tensors = {name.removeprefix("model."): tensor for name, tensor in backbone.items()}
    if is_pretraining:
        tensors.update(content["landmarks"] or {})
    config = content.get("config")
    config = config if isinstance(config, Mapping) and "kind" in content else {}
    on_grid = config.get("landmarks", {}).get("source") == "grid"
    return _parted(tensors, on_grid, dict(config.get("model", {})))


def _described(weights: NetworkWeights) -> Source:
    """What a weights file of ours offers."""
    made = weights.architecture
    known: dict[str, Any] = {"num_landmarks": made.num_tokens, "patch_size": made.patch_size}
    if made.landmark_cnn is not None:
        known["landmark_cnn"] = made.landmark_cnn
        known["landmark_cnn_width"] = made.landmark_cnn_width
    settings = {key: value for key, value in known.items() if value is not None}
    return _parted(weights.state.backbone, made.grid, settings)


def _parted(tensors: Mapping[str, Tensor], on_grid: bool, settings: dict[str, Any]) -> Source:
    landmarks = {n: t for n, t in tensors.items() if n.startswith(LANDMARK_PARTS)}
    transformer = {n: t for n, t in tensors.items() if n not in landmarks}
    return Source(transformer, landmarks, on_grid, settings)


def _load_pretraining(config: PretrainConfig) -> InitWeights:
    if config.landmarks.source == "grid":
        return InitWeights()
    seed_weights(config.run.seed)
    network = build_landmark_network(config)
    path = config.landmarks.weights
    assert path is not None, "the configuration requires it"
    if path == UNTRAINED:
        return InitWeights(landmarks=as_arrays(network))
    landmarks = _fitted_landmarks(
        network, read_source("landmarks.weights", path), "landmarks.weights", path
    )
    return InitWeights(landmarks=landmarks, landmarks_hash=_hash(landmarks))


def _load_finetuning(config: FinetuneConfig) -> InitWeights:
    path, source, transformer = config.start.transformer, None, None
    if path is not None:
        source = read_source("start.transformer", path)
        transformer = _fitted_transformer(config, source, path)
    landmarks = _finetuned_landmarks(config, source)
    return InitWeights(landmarks, transformer, _hash(landmarks), _hash(transformer))


def _fitted_transformer(config: FinetuneConfig, source: Source, path: str) -> Arrays:
    """The transformer's weights, for the patches that this run cuts."""
    network = build_transformer(config)
    keys = ("size", "num_landmarks", "patch_size")
    _fit(network, source.transformer, "start.transformer", path, _settings_of(source, keys))
    if source.on_grid != (config.landmarks.source == "grid"):
        weight = network.patch_to_embedding.weight
        with torch.no_grad():
            weight.copy_(turned_patches(weight, config.model.patch_size))
    return as_arrays(network)


def turned_patches(weight: Tensor, patch_size: int) -> Tensor:
    """A patch embedding's weight [D, p·p·3] for patches whose rows and columns are exchanged.

    Patches at landmarks run along x first (Reference), those of the grid along y, so a transformer
    that goes from one to the other would see every patch lying on its side.
    """
    cells = weight.reshape(len(weight), patch_size, patch_size, 3)
    return cells.transpose(1, 2).reshape(weight.shape)


def _finetuned_landmarks(config: FinetuneConfig, source: Source | None) -> Arrays | None:
    """The landmark CNN's weights; None over the grid and where it begins untrained."""
    start = config.start
    if config.landmarks.source == "grid" or start.landmarks == UNTRAINED:
        return None
    if start.landmarks is not None:
        network = build_landmark_network(config)
        theirs = read_source("start.landmarks", start.landmarks)
        return _fitted_landmarks(network, theirs, "start.landmarks", start.landmarks)
    if source is None:
        return None
    assert start.transformer is not None, "a source was read"
    if not source.landmarks:
        where = "was pretrained on grid patches" if source.on_grid else "holds no landmark CNN"
        raise ConfigError(
            "start.landmarks",
            found=f"nothing, and {start.transformer} {where}",
            expected="a landmark CNN, or a run over the grid",
            fix="give start.landmarks=<a stage-1 run>, or landmarks.source=grid to finetune on "
            "plain patches",
        )
    network = build_landmark_network(config)
    return _fitted_landmarks(network, source, "start.transformer", start.transformer)


def _fitted_landmarks(network: nn.Module, source: Source, key: str, path: str) -> Arrays:
    keys = ("num_landmarks", "landmark_cnn", "landmark_cnn_width")
    _fit(network, source.landmarks, key, path, _settings_of(source, keys))
    return as_arrays(network)


def _settings_of(source: Source, keys: tuple[str, ...]) -> str:
    """What to set, with the values of the run that made the checkpoint where they are known."""
    settings = [
        f"model.{key}={source.settings[key]}" if key in source.settings else f"model.{key}"
        for key in keys
    ]
    return f"set {', '.join(settings)} as in the run that made it, or name another checkpoint"


def _fit(network: nn.Module, state: Mapping[str, Tensor], key: str, path: str, fix: str) -> None:
    """Load a state into a network.

    Raises:
        CheckpointError: it is of another architecture.
    """
    try:
        load_weights(network, state)
    except CheckpointError as error:
        lines = error.found.splitlines()
        shown = [*lines[:_SHOWN], *(["    …"] if len(lines) > _SHOWN else [])]
        raise CheckpointError(
            f"{key}={path}: {error.subject}",
            found="\n".join(shown),
            expected=error.expected,
            fix=fix,
        ) from None


def as_arrays(network: nn.Module) -> Arrays:
    """A network's state as arrays."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _hash(weights: Arrays | None) -> str | None:
    return None if weights is None else digest(as_tensors(weights))
