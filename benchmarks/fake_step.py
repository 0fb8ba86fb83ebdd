"""A pretraining step whose tensors have no data: its configuration, its networks and its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.models.tokens import token_dim
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.tasks.init_weights import InitWeights
from lafs_ray.training.train_step import TrainState


def config_of(size: str, batch: int, num_prototypes: int, **compute: Any) -> PretrainConfig:
    """A pretraining configuration with default settings that no set stands behind."""
    return PretrainConfig.model_validate(
        {
            "run": {"name": "counts"},
            "data": {"path": "/nowhere/train.rec"},
            "landmarks": {"source": "template"},
            "model": {"size": size},
            "head": {"num_prototypes": num_prototypes},
            "batch_size": batch,
            "compute": compute,
        }
    )


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """Make and change tensors without data, in the form for GPUs."""

    def keep(first: Any, *_: Any, **__: Any) -> Any:
        return first

    # One kind of initial weights is drawn until it fits; fake parameters cannot be exchanged.
    patches = mock.patch.object(nn.init, "trunc_normal_", keep), mock.patch.object(nn.Module, "to", keep)
    with FakeTensorMode(allow_non_fake_inputs=True), gpu_form_everywhere(), patches[0], patches[1]:
        yield


def build(config: PretrainConfig) -> TrainState:
    """What the loop trains at the start of a run."""
    sampler = EpochSampler(5_000_000, config.batch_size, 0, 4)
    return build_training(config, sampler, None, InitWeights(), torch.device("cpu"))


def random_batch(config: PretrainConfig, step: int, epoch: int = 1) -> StepBatch:
    """Tokens of a step; in epoch 1 the last layer is trained."""
    model, batch = config.model, config.batch_size
    width = token_dim(model.patch_size, model.token_features)
    shapes = {
        "global_tokens": (batch, 2, model.num_landmarks, width),
        "local_tokens": (batch, config.views.num_local, config.landmarks.local_tokens, width),
    }
    generator = np.random.default_rng(step)
    return StepBatch(step, epoch, {n: generator.integers(0, 256, s, dtype=np.uint8) for n, s in shapes.items()}, [])
