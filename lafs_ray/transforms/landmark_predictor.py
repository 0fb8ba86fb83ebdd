"""The frozen landmark CNN without gradients: an image's landmarks do not depend on its batch or on threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lafs_ray.models.landmark_cnn import fuse_batch_norms, normalize_pixels

# The last group is padded with zeros. On one core an image costs 10 % less in groups of 16 than of 8, as much as of 32;
# alone it costs three times as much.
LANDMARK_GROUP = 16

# Parameters of glibc's `mallopt` and values in bytes: the largest block that is not mapped separately (glibc's
# maximum), and the freed memory at the top of the heap that is kept.
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES = -3, 32 << 20
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES = -1, 256 << 20


class LandmarkPredictor:
    """Landmark prediction without gradients.

    Args:
        network: [M, 3, S, S] in [-1, 1] to landmarks [M, N, 2] in pixels; copied.
        device: runs the network.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self._network = fuse_batch_norms(network).to(device)
        if torch.device(device).type == "cpu":
            keep_freed_memory()

    @torch.no_grad()
    def __call__(self, planes: Tensor) -> Tensor:
        """Predict landmarks [M, N, 2] of images [M, 3, S, S] in 0…255 on the device."""
        found = []
        with single_threaded():
            for start in range(0, len(planes), LANDMARK_GROUP):
                group = planes[start : start + LANDMARK_GROUP]
                scaled = normalize_pixels(group)
                missing = LANDMARK_GROUP - len(group)
                if missing:
                    scaled = torch.cat((scaled, scaled.new_zeros(missing, *scaled.shape[1:])))
                scaled = scaled.contiguous(memory_format=torch.channels_last)
                found.append(self._network(scaled)[: len(group)])
        return torch.cat(found)


class DeviceLandmarkPredictor:
    """Landmark prediction on a GPU: the whole batch at once, in bfloat16 and with channels last.

    The head and its scaling stay in float32. Landmarks of a trained CNN move by some hundredths of a pixel; the
    recipe perturbs them by 5.

    Args:
        network: `LandmarkCNN` or a timm model with a head; copied.
        device: runs the network.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        fused = fuse_batch_norms(network)
        fused.get_submodule("stn").to(torch.bfloat16)
        # mypy: an overload that torch's stubs lack.
        self._network = fused.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, planes: Tensor) -> Tensor:
        """Predict landmarks float32 [M, N, 2] of images [M, 3, S, S] in 0…255 on the device."""
        scaled = normalize_pixels(planes).to(torch.bfloat16, memory_format=torch.channels_last)
        landmarks: Tensor = self._network(scaled)
        return landmarks


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Run the body's torch operators on the calling thread alone.

    oneDNN splits a convolution's sums by threads where it has AVX2 or AVX-512 without Zen's kernels: two threads move
    landmarks by some 3e-5 px, enough to flip bytes of tokens.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 256 MB of freed memory in the process; return whether the C library supports it.

    The network's feature maps have a few MB. glibc returns such blocks to the system and gets them back page by page,
    for a fifth of the network's time, and for half of it in an evaluation of a small one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    is_set = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    return bool(is_set and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES))
