"""The network out of a checkpoint of ours, ready to embed faces."""

from __future__ import annotations

import torch

from lafs_ray.config.base import resolve
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.weights import load_weights
from lafs_ray.training.networks import build_landmark_network, build_transformer
from lafs_ray.training.state import load_checkpoint, newest_checkpoint


def load_embedder(path: str, *, trained: bool = True) -> FaceEmbedder:
    """The network of a checkpoint in eval mode: a pretraining run's teacher, or a supervised one's.

    Args:
        path: a checkpoint, or the folder of a run, which stands for its newest checkpoint.
        trained: whether the transformer gets its weights; else it stays as initialised from the
            run's seed, to compare with. The landmark CNN has its weights in both cases.

    Raises:
        CheckpointError: the file is missing, damaged, not ours, or does not fit its own config.
    """
    content = load_checkpoint(newest_checkpoint(path))
    if content["kind"] == PretrainConfig.__name__:
        config: PretrainConfig | FinetuneConfig = resolve(PretrainConfig, content["config"], path)
        prefix, weights = "backbone.", content["method"]["teacher"]
        landmarks = content["landmarks"]
    else:
        config = resolve(FinetuneConfig, content["config"], path)
        prefix, weights = "model.", content["model"]
        on_grid = config.landmarks.source == "grid"
        landmarks = None if on_grid else {n.removeprefix(prefix): v for n, v in weights.items()}
    torch.manual_seed(config.run.seed)
    transformer, landmark_cnn = build_transformer(config), None
    if trained:
        load_weights(transformer, {n.removeprefix(prefix): v for n, v in weights.items()})
    if landmarks is not None:
        landmark_cnn = build_landmark_network(config)
        load_weights(landmark_cnn, landmarks)
    return FaceEmbedder(transformer, landmark_cnn, config.model.patch_size).eval()
