"""The frozen landmark CNN as views and caches run it: fused, batch-invariant and single-threaded.

Convolutions change their order of summation with the batch size and, on some CPUs, with the number
of threads. In groups of a fixed size on one thread an image's landmarks are the same bits in any
batch and any process of one machine class, so those of a cache are those of a run.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lafs_ray.models.input_range import normalize_pixels

# A last group is filled up with zeros. On one core 16 images cost 10 % less each than 8 and as much
# as 32; single ones cost three times as much.
LANDMARK_GROUP = 16

# glibc's numbers of what `mallopt` sets, and bytes: the largest block that is not mapped by itself
# (its own limit), and the memory that stays with the process when its last blocks are freed.
_MMAP_THRESHOLD, _LARGEST_BLOCK = -3, 32 << 20
_TRIM_THRESHOLD, _KEPT = -1, 256 << 20


class LandmarkPredictor:
    """Finds landmarks without gradients.

    Args:
        network: [M, 3, S, S] in [-1, 1] to landmarks [M, N, 2] in pixels; copied.
        device: where to compute.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self._network = fused(network).to(device)
        if torch.device(device).type == "cpu":
            keep_freed_memory()

    @torch.no_grad()
    def __call__(self, planes: Tensor) -> Tensor:
        """Landmarks [M, N, 2] of images [M, 3, S, S] in 0…255 on the device."""
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


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Run the body's torch operators on the calling thread alone.

    oneDNN splits a convolution's sums by threads where it has AVX2 or AVX-512 without Zen's
    kernels: two threads move landmarks by some 3e-5 px, enough to flip bytes of tokens.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> bool:
    """Let each thread of this process keep up to 256 MB that it frees; whether that could be asked.

    The network's maps are of a few MB. glibc returns such memory to the system and gets it back
    page by page, for up to a fifth of the network's time. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))


def fused(network: nn.Module) -> nn.Module:
    """A frozen copy in eval mode whose batch norms are part of the convolutions before them.

    The same function up to float32 rounding: landmarks move by some 1e-4 pixels. What follows a
    convolution works in its memory, as fresh pages cost a quarter of the network's time.
    """
    network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for sequence in network.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for place in range(len(sequence) - 1):
            convolution, norm = sequence[place], sequence[place + 1]
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                sequence[place] = fuse_conv_bn_eval(convolution, norm)
                sequence[place + 1] = nn.Identity()
        layers = [layer for layer in sequence if type(layer) is not nn.Identity]
        for convolution, activation in itertools.pairwise(layers):
            follows = type(convolution) is nn.Conv2d
            if follows and isinstance(activation, nn.ReLU | nn.Hardswish):
                activation.inplace = True
    return network
