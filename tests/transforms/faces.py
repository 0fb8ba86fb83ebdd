"""Smooth random images, a landmark CNN for them, and the default settings of views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config.train import Model
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.data.landmark_template import grid_template
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.landmark_template import TemplateLandmarks
from lafs_ray.training.tasks import pretrain
from lafs_ray.transforms import augment_float
from lafs_ray.transforms.packed_faces import color_coefficients, half_kernels
from lafs_ray.transforms.params import CONTRAST, HUE, SATURATION, ViewParams, ViewSettings
from lafs_ray.transforms.views import MultiViewTransform, mirror_x

# Steps of 8 bits by which OpenCV's bilinear samples may be off besides rounding: version 4 moves a sample by 1/64 px at
# most in x and in y, and `smooth_images` change by 96 a pixel at most.
REMAP_STEPS = 0 if int(cv2.__version__.split(".")[0]) >= 5 else 2

# Epoch or shard of up to 16 images, and their keys.
ZEROS, KEYS = np.zeros(16, dtype=np.int64), np.arange(16, dtype=np.int64)


def view_settings(**changes: Any) -> ViewSettings:
    """The settings of the default recipe, some of them changed."""
    return replace(pretrain.view_settings(Model(), Views(), PretrainLandmarks()), **changes)


def smooth_images(count: int, seed: int = 0, size: int = 112) -> NDArray[np.uint8]:
    """Uint8 [count, size, size, 3] with the full range of values and all hues."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(-40, 295, (count, 9, 9, 3)).astype(np.float32)
    images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]
    return np.stack(images).clip(0, 255).astype(np.uint8)


@torch.no_grad()
def lively_cnn(num_landmarks: int = 196, width: float = 0.25) -> LandmarkCNN:
    """An untrained landmark CNN in eval mode whose landmarks move by pixels from image to image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LandmarkCNN(num_landmarks, width=width)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # One forward sets the statistics to those of the images.
                module.momentum = 1.0
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
        images = torch.from_numpy(smooth_images(16, seed=1)).permute(0, 3, 1, 2) / 127.5 - 1
        network.train()(images)
        network.output_layer[1].weight.mul_(20)
    return network.eval()


def known_landmarks(predict: Callable[[Tensor], Tensor], images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Landmarks [B, 2, N, 2] of images and of their mirror images, as points of the images, as a set with cached ones
    gives them."""
    planes = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    both = torch.stack((predict(planes), mirror_x(predict(planes.flip(-1)))), dim=1)
    return both.numpy().astype(np.float16)


def grid_landmarks(num_landmarks: int) -> TemplateLandmarks:
    """The built-in template as a network; rounded to half a pixel, which float16 holds exactly."""
    network = TemplateLandmarks(num_landmarks)
    network.output_layer.positions.copy_(torch.from_numpy((grid_template(num_landmarks) * 2).round() / 2))
    return network


GRAY = HUE + 1


def changed_color(views: Tensor, kind: int, *factors: float) -> Tensor:
    """The definition of one color operation, with a factor for each view or one for all."""
    rows = []
    for factor in factors:
        rest = 1 - factor
        own = {HUE: 1.0, GRAY: 0.0}.get(kind, factor)
        gray = 1.0 if kind == GRAY else rest if kind == SATURATION else 0.0
        rows.append((own, gray, rest if kind == CONTRAST else 0.0, factor if kind == HUE else 0.0))
    return augment_float.color_step(views, torch.tensor(rows).expand(len(views), -1))


def blurred(views: Tensor, *sigmas: float) -> Tensor:
    """The definition of the blur, with a standard deviation for each view or one for all."""
    kernels = torch.from_numpy(half_kernels(np.array(sigmas, dtype=np.float32), 7))
    return augment_float.blur(views, kernels.expand(len(views), -1))


def changed_appearance(views: Tensor, params: ViewParams) -> Tensor:
    """The definition of the whole chain, of B images and V views with B·V = M."""
    colors, kernels = color_coefficients(params), half_kernels(params.blur_sigma_px, 7)
    given = (torch.from_numpy(each).flatten(0, 1) for each in (colors, kernels, params.solarizes))
    return augment_float.change_appearance(views, *given)


def transform_of(settings: ViewSettings, **arguments: object) -> MultiViewTransform:
    """The transform of any source, with seed 0 and a lively landmark CNN, or a template's."""
    cnn: nn.Module | None = None if settings.source in ("cached", "grid") else lively_cnn()
    if settings.source == "template":
        cnn = grid_landmarks(settings.num_landmarks)
    return MultiViewTransform(settings, cnn, 0, **arguments)  # type: ignore[arg-type]
