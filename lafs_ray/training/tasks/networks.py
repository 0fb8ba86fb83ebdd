"""Build the untrained networks of a configuration."""

from __future__ import annotations

import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.models.fvit import FViT
from lafs_ray.models.landmark_cnn import LandmarkNetwork, build_landmark_cnn, start_on_grid_
from lafs_ray.models.landmark_template import TemplateLandmarks
from lafs_ray.models.readout import TrainedWhitening, readout_dim
from lafs_ray.models.timm_transformer import configured_size, new_transformer
from lafs_ray.models.tokens import token_dim

_INIT_STREAM = 0x696E6974


def seed_weights(seed: int) -> None:
    """Seed torch's generator for a run's initial weights."""
    torch.manual_seed(seed ^ _INIT_STREAM)


def build_landmark_network(config: PretrainConfig | FinetuneConfig) -> LandmarkNetwork:
    """Build the landmark CNN, initialized from torch's current generator; or the template that stands in its place."""
    model = config.model
    if config.landmarks.source == "template":
        return TemplateLandmarks(model.num_landmarks)
    network = build_landmark_cnn(
        model.landmark_cnn, model.num_landmarks, model.landmark_cnn_width, model.landmark_scaling
    )
    if model.landmark_start == "grid" and not isinstance(network, TemplateLandmarks):
        start_on_grid_(network)
    return network


def build_transformer(config: PretrainConfig | FinetuneConfig) -> FViT:
    """Build the transformer, initialized from torch's current generator."""
    model = config.model
    transformer = new_transformer(
        configured_size(model),
        model.num_landmarks,
        token_dim(model.patch_size, model.token_features),
        dropout=model.dropout,
        drop_path=model.drop_path,
        drop_path_per_sample=model.drop_path_per_sample,
        init_std=model.init_std,
    )
    transformer.transformer.recompute = config.compute.activation_checkpointing
    return transformer


def read_dim(config: FinetuneConfig) -> int:
    """Return how many numbers the readout of a supervised run reads."""
    model = config.model
    return readout_dim(model.readout, model.num_landmarks, configured_size(model).width)


def build_whitening(config: FinetuneConfig) -> TrainedWhitening | None:
    """Build the whitening of a supervised run, all zeros but for its map; None if it has none."""
    dim = config.model.whitened_dim
    return None if dim is None else TrainedWhitening(read_dim(config), dim)
