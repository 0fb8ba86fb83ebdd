"""The frozen network of a distillation: read and checked before a run, and built on each rank."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError
from lafs_ray.methods.distillation import Distillation, FrozenNetwork
from lafs_ray.methods.lafs import LafsNetwork
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, part_of
from lafs_ray.models.checkpoints.state_dicts import LANDMARK_PREFIXES, PublishedState, hash_tensors, load_weights
from lafs_ray.models.readout import WHITENING_PREFIX
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.tasks.init_weights import InitWeights
from lafs_ray.training.tasks.networks import build_transformer


def with_frozen(config: PretrainConfig, weights: InitWeights) -> InitWeights:
    """Return initial weights with the network of `distillation.teacher`.

    Raises:
        CheckpointError: the file is missing or damaged, is not whitened, or has other tokens than this run.
    """
    path = config.distillation.teacher
    if path is None:
        return weights
    read = load_for_inference(path)
    _require_fit(config, read.architecture, path)
    # Its tokens are those of the run's views, so it needs no landmarks.
    kept = {name: v for name, v in read.state.backbone.items() if not name.startswith(LANDMARK_PREFIXES)}
    frozen = replace(read, architecture=replace(read.architecture, landmark_cnn=None), state=PublishedState(kept))
    made = frozen.architecture
    line = f"frozen network of {path}: readout {made.readout}, whitened to {made.whitened_dim} numbers"
    return replace(weights, frozen=frozen, transformer_hash=hash_tensors(kept), report=(*weights.report, line))


def _require_fit(config: PretrainConfig, made: Architecture, path: str) -> None:
    """Raise a CheckpointError for a network that is not whitened, or of other tokens."""
    model, subject = config.model, f"distillation.teacher={path}"
    if made.whitened_dim is None:
        raise CheckpointError(
            subject,
            found="a network without a whitening",
            expected="a file of `lafs whiten`: other embeddings lie in a narrow cone, where all faces are near",
            fix=f"lafs whiten {path} FACES whitened.safetensors --neighbors",
        )
    is_grid = config.landmarks.source == "grid"
    here = {
        "model.num_landmarks": (made.num_tokens, model.num_landmarks),
        "model.patch_size": (made.patch_size, model.patch_size),
        "model.token_features": (made.token_features, model.token_features),
        "tokens of": ("the grid" if made.grid else "landmarks", "the grid" if is_grid else "landmarks"),
    }
    wrong = {key: pair for key, pair in here.items() if pair[0] != pair[1]}
    if wrong:
        raise CheckpointError(
            subject,
            found=", ".join(f"{key} {pair[0]}" for key, pair in wrong.items()),
            expected=", ".join(f"{key} {pair[1]}" for key, pair in wrong.items()),
            fix="set model.* as in the run that was whitened, or name another file",
        )


def build_distillation(config: PretrainConfig, frozen: NetworkWeights, device: torch.device) -> Distillation:
    """Build the student and its copy, weights from torch's current generator, and the frozen network."""
    dim = frozen.architecture.whitened_dim
    assert dim is not None, "it was checked"

    def network() -> LafsNetwork:
        return LafsNetwork(build_transformer(config), nn.Linear(configured_size(config.model).width, dim)).to(device)

    student, copy = network(), network()
    with torch.random.fork_rng(devices=[]):
        transformer, whitening = frozen.architecture.build_transformer(), frozen.architecture.build_whitening()
    assert whitening is not None
    load_weights(transformer, frozen.state.backbone)
    load_weights(whitening, part_of(frozen.state.backbone, WHITENING_PREFIX))
    target = FrozenNetwork(transformer, frozen.architecture.readout, whitening).to(device)
    return Distillation(student, copy, target, temp=config.distillation.temp)
