"""The network out of a checkpoint of ours, ready to embed faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lafs_ray.config.base import resolve
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.weights import load_weights
from lafs_ray.training.build import build_landmark_network, build_transformer
from lafs_ray.training.state import load_checkpoint, newest_checkpoint


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint that was read.

    Args:
        uri: where it lies.
        content: what it holds.
    """

    uri: str
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that made it."""
        return int(self.content["step"])

    @property
    def is_pretraining(self) -> bool:
        """Whether no label was used."""
        return bool(self.content["kind"] == PretrainConfig.__name__)

    def embedder(self, *, trained: bool = True) -> FaceEmbedder:
        """The network in eval mode: a pretraining run's teacher, or a supervised run's model.

        Args:
            trained: whether the transformer gets its weights; else it stays as initialised from
                the run's seed, to compare with. The landmark CNN has its weights in both cases.

        Raises:
            CheckpointError: the weights do not fit the checkpoint's own configuration.
        """
        content = self.content
        if self.is_pretraining:
            config: PretrainConfig | FinetuneConfig = resolve(
                PretrainConfig, content["config"], self.uri
            )
            prefix, weights = "backbone.", content["method"]["teacher"]
            landmarks = content["landmarks"]
        else:
            config = resolve(FinetuneConfig, content["config"], self.uri)
            prefix, weights = "model.", content["model"]
            landmarks = {name.removeprefix(prefix): value for name, value in weights.items()}
        torch.manual_seed(config.run.seed)
        transformer, landmark_cnn = build_transformer(config), None
        if trained:
            load_weights(transformer, {n.removeprefix(prefix): v for n, v in weights.items()})
        if landmarks is not None:
            landmark_cnn = build_landmark_network(config)
            load_weights(landmark_cnn, landmarks)
        return FaceEmbedder(transformer, landmark_cnn, config.model.patch_size).eval()


def read_trained(path: str) -> Trained:
    """Read a checkpoint, or the newest one of a run.

    Args:
        path: a checkpoint, or the folder of a run.

    Raises:
        CheckpointError: the file is missing, damaged or not ours; nothing in it is executed.
    """
    uri = newest_checkpoint(path)
    return Trained(uri, load_checkpoint(uri))


def load_embedder(path: str, *, trained: bool = True) -> FaceEmbedder:
    """`read_trained(path).embedder(trained=trained)`."""
    return read_trained(path).embedder(trained=trained)
