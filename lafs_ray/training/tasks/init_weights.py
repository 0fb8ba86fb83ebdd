"""Initial weights taken from other runs: the landmark CNN and the pretrained transformer.

They are read and checked once, before the run starts, and travel as arrays, which Ray's processes on a node share
without copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.landmark_template import grid_template, read_template
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, part_of
from lafs_ray.models.checkpoints.state_dicts import LANDMARK_PREFIXES, hash_tensors, load_weights, published_state
from lafs_ray.models.checkpoints.timm_weights import is_timm_state
from lafs_ray.models.landmark_head import DIRECT_TENSOR
from lafs_ray.models.landmark_template import TEMPLATE_TENSOR, is_template
from lafs_ray.models.readout import WHITENING_PREFIX
from lafs_ray.models.timm_transformer import TimmTransformer, size_settings
from lafs_ray.training.checkpoint.inference import open_checkpoint
from lafs_ray.training.tasks.given_landmarks import external_mean, regression_mean
from lafs_ray.training.tasks.networks import build_landmark_network, build_transformer, seed_weights
from lafs_ray.training.tasks.timm_start import start_from_timm
from lafs_ray.training.tasks.whitened_start import whitening_state

Arrays = dict[str, NDArray[Any]]

UNTRAINED = "untrained"

_MAX_LINES = 9


@dataclass(frozen=True)
class InitWeights:
    """Initial weights of a run, by the names of their module.

    Args:
        landmarks: of the landmark CNN: frozen in pretraining; in finetuning its initial weights and the regularizer's
            anchor; the positions of a template; in a landmark regression the mean of the given ones. None: over the
            grid, or from scratch.
        transformer: of the fViT; None: from scratch.
        whitening: of its embedding; None: it has none.
        landmarks_hash: of the landmark weights or positions, unless the CNN is untrained.
        transformer_hash: of the transformer's; of a pretraining that continues another, of student and teacher.
        student: of a pretraining's student; names that it lacks start from scratch.
        method: of its teacher (`teacher.*`) and center (`center.*`), likewise.
        frozen: the network whose embedding a pretraining learns; None: it learns from itself.
        report: what of these was taken and what not, and why; a line for each part.
    """

    landmarks: Arrays | None = None
    transformer: Arrays | None = None
    whitening: Arrays | None = None
    landmarks_hash: str | None = None
    transformer_hash: str | None = None
    student: Arrays | None = None
    method: Arrays | None = None
    frozen: NetworkWeights | None = None
    report: tuple[str, ...] = ()

    @property
    def frozen_architecture(self) -> Architecture | None:
        """Of the frozen network."""
        return None if self.frozen is None else self.frozen.architecture


@dataclass(frozen=True)
class Pretrained:
    """The networks in a checkpoint that a run can start from.

    Args:
        transformer: tensors for `FViT`; of a pretraining run those of its teacher.
        landmarks: tensors for the landmark CNN; empty where it has none.
        architecture: None for a published file.
        whitening: tensors for `Whitening`; empty where it has none.
    """

    transformer: dict[str, Tensor]
    landmarks: dict[str, Tensor]
    architecture: Architecture | None
    whitening: dict[str, Tensor] = field(default_factory=dict)

    @property
    def on_grid(self) -> bool:
        """Whether the transformer was trained on plain grid patches."""
        return self.architecture is not None and self.architecture.grid


def load_init_weights(config: TrainConfig) -> InitWeights:
    """Load the weights that a configuration names.

    Raises:
        CheckpointError: a file is missing, damaged or of another architecture.
        ConfigError: a landmark CNN is needed and not named, or its name is unknown.
    """
    if isinstance(config, PretrainConfig):
        return _load_pretraining(config)
    if isinstance(config, LandmarkConfig):
        given = regression_mean(config)
        return InitWeights({TEMPLATE_TENSOR: given.mean}, landmarks_hash=given.landmarks_hash)
    assert isinstance(config, FinetuneConfig)
    path, pretrained, transformer, whitening = config.start.transformer, None, None, None
    report: tuple[str, ...] = ()
    if path is not None:
        pretrained = read_pretrained("start.transformer", path)
        if is_timm_state(pretrained.transformer):
            transformer, report = _from_timm(config, pretrained, path)
        else:
            transformer = _transformer_arrays(config, pretrained, path)
        whitening = whitening_state(config, pretrained.architecture, pretrained.whitening, path)
        if pretrained.whitening and whitening is None:
            report += (f"transformer from {path}: without its whitening, as model.whitened_dim is not set",)
    landmarks = _finetuning_landmarks(config, pretrained)
    started = transformer if whitening is None or transformer is None else transformer | whitening
    return InitWeights(landmarks, transformer, whitening, _hash(landmarks), _hash(started), report=report)


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Copy arrays to tensors; arrays that Ray shares are read-only."""
    return {name: torch.tensor(array) for name, array in arrays.items()}


def as_arrays(network: nn.Module) -> Arrays:
    """Return a network's state as arrays."""
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def read_pretrained(key: str, path: str) -> Pretrained:
    """Read the networks in a checkpoint of any kind.

    Args:
        key: the setting that names it, for messages.
        path: as in `open_checkpoint`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no tensors.
    """
    try:
        opened = open_checkpoint(path)
        if isinstance(opened, NetworkWeights):
            backbone, architecture = opened.state.backbone, opened.architecture
        else:
            backbone, architecture = published_state(opened.content).backbone, None
    except CheckpointError as error:
        parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
        place = "" if error.subject == path else f": {error.subject}"
        raise CheckpointError(f"{key}={path}{place}", **parts) from None
    landmarks = {n: t for n, t in backbone.items() if n.startswith(LANDMARK_PREFIXES)}
    whitening = part_of(backbone, WHITENING_PREFIX)
    others = (*landmarks, *(WHITENING_PREFIX + name for name in whitening))
    transformer = {n: t for n, t in backbone.items() if n not in others}
    return Pretrained(transformer, landmarks, architecture, whitening)


def _load_pretraining(config: PretrainConfig) -> InitWeights:
    if config.landmarks.source == "grid":
        return InitWeights()
    if config.landmarks.source == "template":
        template = _template_arrays(config, None)
        return InitWeights(landmarks=template, landmarks_hash=_hash(template))
    path = config.landmarks.weights
    if config.landmarks.source == "cached" and path is None:
        given = external_mean(config)
        return InitWeights(landmarks={TEMPLATE_TENSOR: given.mean}, landmarks_hash=given.landmarks_hash)
    if path is None:
        raise ConfigError(
            "landmarks.weights",
            found=f"nothing, and {config.start.student} holds no landmark CNN",
            expected=f"a landmark CNN, for landmarks.source={config.landmarks.source}",
            fix="set landmarks.weights=<a stage-1 run>, or landmarks.source to template or grid",
        )
    seed_weights(config.run.seed)
    if path == UNTRAINED:
        return InitWeights(landmarks=as_arrays(build_landmark_network(config)))
    pretrained = read_pretrained("landmarks.weights", path)
    landmarks = _landmark_arrays(config, pretrained, "landmarks.weights", path)
    return InitWeights(landmarks=landmarks, landmarks_hash=_hash(landmarks))


def _template_arrays(config: PretrainConfig | FinetuneConfig, pretrained: Pretrained | None) -> Arrays:
    """Return the positions of a template: configured, those that the transformer was pretrained with, or the grid."""
    path, count = config.landmarks.template, config.model.num_landmarks
    if path is not None:
        return {TEMPLATE_TENSOR: read_template(path, count)}
    if pretrained is not None and is_template(pretrained.landmarks):
        return {TEMPLATE_TENSOR: pretrained.landmarks[TEMPLATE_TENSOR].numpy()}
    return {TEMPLATE_TENSOR: grid_template(count)}


def _finetuning_landmarks(config: FinetuneConfig, pretrained: Pretrained | None) -> Arrays | None:
    """Return the landmark CNN's weights or the template; None over the grid and where the CNN starts untrained."""
    start = config.start
    if config.landmarks.source == "template":
        return _template_arrays(config, pretrained)
    if config.landmarks.source == "grid" or start.landmarks == UNTRAINED:
        return None
    if start.landmarks is not None:
        stage_one = read_pretrained("start.landmarks", start.landmarks)
        return _landmark_arrays(config, stage_one, "start.landmarks", start.landmarks)
    if pretrained is None:
        return None
    assert start.transformer is not None, "a checkpoint was read"
    if not pretrained.landmarks:
        where = "was pretrained on grid patches" if pretrained.on_grid else "holds no landmark CNN"
        raise ConfigError(
            "start.landmarks",
            found=f"nothing, and {start.transformer} {where}",
            expected="a landmark CNN, or a run over the grid",
            fix="set start.landmarks=<a stage-1 run>, or landmarks.source=grid to finetune on plain patches",
        )
    return _landmark_arrays(config, pretrained, "start.transformer", start.transformer)


def _transformer_arrays(config: FinetuneConfig, pretrained: Pretrained, path: str) -> Arrays:
    """Check the transformer's weights, and adapt them to the patches of this run."""
    network = build_transformer(config)
    keys = ("size", "num_landmarks", "patch_size", "token_features")
    made = pretrained.architecture
    if made is not None and made.token_features == config.model.token_features != "pixels":
        _require_patch_size(config, made, path)
    load_configured(network, pretrained.transformer, made, f"start.transformer={path}", keys)
    if config.model.token_features == "pixels" and pretrained.on_grid != (config.landmarks.source == "grid"):
        weight = network.patch_to_embedding.weight
        with torch.no_grad():
            weight.copy_(transpose_patch_embedding(weight, config.model.patch_size))
    return as_arrays(network)


def _from_timm(config: FinetuneConfig, pretrained: Pretrained, path: str) -> tuple[Arrays, tuple[str, ...]]:
    """Adapt timm's own weights of a ViT to this run's student, and report what became of each part."""
    template = config.landmarks.source == "template"
    landmarks = torch.tensor(_template_arrays(config, None)[TEMPLATE_TENSOR]) if template else None
    state, report = start_from_timm(config, pretrained.transformer, f"start.transformer={path}", landmarks)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    return arrays, tuple(f"transformer from {path}: {line}" for line in report)


def _require_patch_size(config: FinetuneConfig, made: Architecture, path: str) -> None:
    """Raise a CheckpointError where tokens have the same shape and come from patches of another size."""
    if made.patch_size != config.model.patch_size:
        raise CheckpointError(
            f"start.transformer={path}",
            found=f"{made.token_features} of patches of {made.patch_size} px",
            expected=f"patches of {config.model.patch_size} px (model.patch_size)",
            fix=f"set model.patch_size={made.patch_size}",
        )


def transpose_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """Return a patch embedding's weight [D, p·p·3] for patches whose two axes are exchanged.

    Patches at landmarks run along x first (Reference), those of the grid along y: without this, a transformer that
    moves from one to the other would see every patch transposed.
    """
    cells = weight.reshape(len(weight), patch_size, patch_size, 3)
    return cells.transpose(1, 2).reshape(weight.shape)


def _landmark_arrays(config: PretrainConfig | FinetuneConfig, pretrained: Pretrained, key: str, path: str) -> Arrays:
    """Check the landmark CNN's weights against the configured network."""
    if is_template(pretrained.landmarks):
        raise ConfigError(
            f"{key}={path}",
            found="a run on a template or on landmarks of another tool, without a landmark CNN",
            expected=f"a landmark CNN, or landmarks.source=template instead of {config.landmarks.source}",
            fix="set landmarks.source=template to use its positions, or name a run with a landmark CNN",
        )
    # `load_weights` leaves out what the network has not: the same numbers would be other landmarks.
    scaling = "direct" if DIRECT_TENSOR in pretrained.landmarks else "span"
    if scaling != config.model.landmark_scaling:
        raise ConfigError(
            f"{key}={path}",
            found=f"a landmark CNN with landmark_scaling {scaling}",
            expected=f"{config.model.landmark_scaling} (model.landmark_scaling)",
            fix=f"set model.landmark_scaling={scaling}, or name another checkpoint",
        )
    network = build_landmark_network(config)
    keys = ("num_landmarks", "landmark_cnn", "landmark_cnn_width", "landmark_scaling")
    load_configured(network, pretrained.landmarks, pretrained.architecture, f"{key}={path}", keys)
    return as_arrays(network)


def load_configured(
    network: nn.Module, state: Mapping[str, Tensor], made: Architecture | None, subject: str, keys: Sequence[str]
) -> None:
    """Load a state into a network of the configuration.

    Args:
        network: as configured.
        state: of the checkpoint.
        made: the checkpoint's architecture, None where it is unknown.
        subject: the setting and the checkpoint.
        keys: settings of `model` that determine the network.

    Raises:
        CheckpointError: it is of another architecture; names the settings to change.
    """
    try:
        load_weights(network, state)
    except CheckpointError as error:
        known: dict[str, Any] = {}
        if made is not None:
            known = {**vars(made), **size_settings(made.transformer), "num_landmarks": made.num_tokens}
            known["landmark_cnn_width"] = made.landmark_cnn_width if made.landmark_cnn else None
        if "student" in known:
            keys = ["student", *(key for key in keys if key != "size")]
        elif isinstance(network, TimmTransformer):
            keys, known = ["student", *keys], {**known, "student": "null"}
        values = {key: known.get(key) for key in keys}
        settings = [f"model.{k}" if v is None else f"model.{k}={v}" for k, v in values.items()]
        lines = error.found.splitlines()
        shown = [*lines[:_MAX_LINES], *(["    …"] if len(lines) > _MAX_LINES else [])]
        raise CheckpointError(
            f"{subject}: {error.subject}",
            found="\n".join(shown),
            expected=error.expected,
            fix=f"set {', '.join(settings)} as in the run that made it, or name another checkpoint",
        ) from None


def _hash(weights: Arrays | None) -> str | None:
    return None if weights is None else hash_tensors(as_tensors(weights))
