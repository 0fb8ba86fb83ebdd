"""Fingerprint of this machine's crops: equal fingerprints mean equal bits of views and tokens.

Crops are the same bits in any batch, process and number of threads, but other kinds of CPU (AVX2, AVX-512, Zen) and
other versions of torch, OpenCV or numpy may round otherwise. A fixed synthetic batch, cropped once per process, tells
whether two machines agree.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from lafs_ray.config.train import Model
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.training.tasks.pretrain import view_settings
from lafs_ray.transforms.orientation_uint8 import sample_orientations
from lafs_ray.transforms.views import MultiViewTransform

_NUM_IMAGES = 2


@cache
def crop_fingerprint() -> str:
    """Hash landmarks and tokens of a fixed batch under the default settings: 8 hex digits."""
    settings = view_settings(Model(), Views(), PretrainLandmarks())
    transform = MultiViewTransform(settings, _landmark_cnn(), seed=0)
    zeros, keys = np.zeros(_NUM_IMAGES, dtype=np.int64), np.arange(_NUM_IMAGES)
    images = _images()
    tokens = transform(images, zeros, zeros, keys)
    # Tokens hide in 8 bits most of what landmarks show in 24.
    landmarks = transform.predict_landmarks(torch.from_numpy(images).permute(0, 3, 1, 2))
    digest = hashlib.blake2b(landmarks.numpy().tobytes(), digest_size=4)
    for name in sorted(tokens):
        digest.update(np.ascontiguousarray(tokens[name]).tobytes())
    digest.update(sample_orientations(images, landmarks.numpy(), Model().patch_size).tobytes())
    return digest.hexdigest()


def _landmark_cnn() -> LandmarkCNN:
    """A network of full size whose weights are numpy's, which no CPU changes."""
    network = LandmarkCNN(Model().num_landmarks)
    generator = np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            # Variances are positive; the others keep activations near 1.
            low = 0.5 if name.endswith("running_var") else -0.5
            scale = max(tensor[0].numel(), 1) ** -0.5 if tensor.ndim > 1 else 1.0
            values = (generator.random(tensor.shape) + low) * (2 * scale)
            tensor.copy_(torch.from_numpy(np.asarray(values)))
    return network.eval()


def _images() -> NDArray[np.uint8]:
    """Smooth patterns of integers, uint8 [n, 112, 112, 3]."""
    row, column = np.mgrid[:112, :112]
    waves = [(3 * row + 5 * column), (row * column) // 16, (row - column) ** 2 // 24]
    image = np.stack(waves, axis=-1) % 256
    return np.stack([image, image[::-1, :, ::-1]]).astype(np.uint8)[:_NUM_IMAGES]
