"""From the configuration of a landmark regression to its view, task and schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.finetune import Augmentation
from lafs_ray.config.landmarks import LandmarkConfig, RegressionAugmentation
from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.errors import DataError
from lafs_ray.methods.landmark_regression import LandmarkRegression
from lafs_ray.methods.optim import CosineSchedule
from lafs_ray.models.landmark_cnn import build_landmark_cnn
from lafs_ray.models.landmark_template import TEMPLATE_TENSOR
from lafs_ray.training.input_pipeline import Columns, Transform
from lafs_ray.training.run_length import run_length
from lafs_ray.training.tasks.finetune import single_view_settings
from lafs_ray.training.tasks.init_weights import InitWeights
from lafs_ray.transforms.params import ViewSettings, sample_view_params
from lafs_ray.transforms.views import map_landmarks, supervised_view

_BLUR_SIGMA_PX = (0.1, 2.0)
_HELD_BACK_STREAM = 0x68656C64


def regression_view_settings(augmentation: RegressionAugmentation) -> ViewSettings:
    """Return the settings of the one view."""
    supervised = single_view_settings(
        Augmentation(crop_area=augmentation.crop_area, jitter=augmentation.jitter, flip=0.0)
    )
    return replace(
        supervised, hue=0.0, gray=augmentation.gray, blur=(augmentation.blur, 0.0, 0.0), blur_sigma_px=_BLUR_SIGMA_PX
    )


def regression_transform(config: LandmarkConfig) -> Transform:
    """Return the transform of CPU workers: faces and their landmarks to one view of both."""
    settings, seed = regression_view_settings(config.augmentation), config.run.seed

    def transform(faces: Columns) -> Columns:
        record = {name: faces[name] for name in ("epoch", "shard", "key")}
        views = supervised_view(settings, faces["image"], seed, **record).numpy()
        params = sample_view_params(settings, seed, **record)
        given = torch.from_numpy(faces["landmarks"].astype(np.float32)).unsqueeze(1)
        boxes, flips = torch.from_numpy(params.boxes), torch.from_numpy(params.flips)
        moved = map_landmarks(given, boxes, flips, settings.image_size)[:, 0]
        return {"images": views, "landmarks": moved.numpy(), **{n: faces[n] for n in ("shard", "key")}}

    return transform


def build_regression(config: LandmarkConfig, init_weights: InitWeights, device: torch.device) -> LandmarkRegression:
    """Build the CNN, weights from torch's current generator; its landmarks begin near the mean of the given ones."""
    model = config.model
    network = build_landmark_cnn(
        model.landmark_cnn, model.num_landmarks, model.landmark_cnn_width, model.landmark_scaling
    )
    head = network.output_layer
    assert isinstance(head, nn.Sequential)
    dropout, linear = head[0], head[1]
    assert isinstance(dropout, nn.Dropout)
    assert isinstance(linear, nn.Linear)
    # Dropped features would move all landmarks by more than the error that is left to learn.
    dropout.p = 0.0
    assert init_weights.landmarks is not None, "the mean of the cache"
    mean = torch.tensor(init_weights.landmarks[TEMPLATE_TENSOR])
    with torch.no_grad():
        linear.bias.copy_((mean / (IMAGE_SIZE / 2) - 1).flatten())
        linear.weight.mul_(0.1)
    return LandmarkRegression(network.to(device))


def regression_hparams(config: LandmarkConfig, sampler: EpochSampler) -> Callable[[int], dict[str, float]]:
    """Return the schedule: a global step to lr and weight decay."""
    length, optim = run_length(config, sampler), config.optim
    total = length.total_steps
    lr = CosineSchedule(optim.lr, optim.min_lr, total, optim.warmup.steps(length.steps_per_epoch, total))
    return lambda step: {"lr": lr(step), "weight_decay": optim.weight_decay}


def held_back_images(config: LandmarkConfig, path: str, faces: FaceSet) -> NDArray[np.int64]:
    """Return the numbers of the images of a set that the run does not train on, ascending.

    Raises:
        DataError: none would be left to train on.
    """
    count = round(config.data.held_back * faces.num_images)
    if count >= faces.num_images:
        raise DataError(
            path,
            found=f"{faces.num_images} images, of which {count} are held back",
            expected="images to train on",
            fix="reduce data.held_back",
        )
    generator = np.random.default_rng([_HELD_BACK_STREAM, config.run.seed])
    return np.sort(generator.permutation(faces.num_images)[:count])


def training_images(config: LandmarkConfig, path: str, faces: FaceSet) -> FaceSet:
    """Return a set without the images that are held back."""
    return faces.subset(np.setdiff1d(np.arange(faces.num_images), held_back_images(config, path, faces)))
