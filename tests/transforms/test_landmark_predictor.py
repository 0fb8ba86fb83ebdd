from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lafs_ray.models.landmark_cnn import build_landmark_cnn, fuse_batch_norms
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from tests.transforms.faces import lively_cnn, smooth_images


def test_fuse_batch_norms__is_the_network() -> None:
    """Batch norms are in the convolutions; landmarks move by less than 5e-3 px; nothing shared."""
    network = lively_cnn(49, width=1.0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    fast = fuse_batch_norms(network)
    kinds = [type(module) for module in fast.modules()]
    assert nn.BatchNorm2d not in kinds
    images = torch.from_numpy(smooth_images(4)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected, found = network(images), fast(images)
    assert expected.std(dim=0).mean() > 1
    # 47 layers in float32, whose numbers are stretched to the width of the image; 1e-4 px measured on a trained
    # network.
    assert (found - expected).abs().max() < 5e-3
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_landmark_predictor__timm_model() -> None:
    """Any landmark CNN can be run; an image's landmarks are equal bit by bit in any batch."""
    torch.manual_seed(0)
    find = LandmarkPredictor(build_landmark_cnn("timm/mobilenetv3_small_050", 9))
    planes = torch.from_numpy(smooth_images(18)).permute(0, 3, 1, 2)
    together = find(planes)
    assert together.shape == (18, 9, 2)
    assert np.isfinite(together.numpy()).all()
    assert torch.equal(find(planes[5:6]), together[5:6])


REUSE = """
import resource, torch
from lafs_ray.transforms.landmark_predictor import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(5 << 20) for _ in range(5)]
    del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
print(faults(), min(faults() for _ in range(9)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries are left alone")
def test_keep_freed_memory__costs_no_new_pages() -> None:
    """Maps of 100 MB in all come from new pages the first time, and from the same ones after."""
    done = subprocess.run([sys.executable, "-c", REUSE], capture_output=True, text=True, timeout=120, check=True)
    # Where the blocks come to lie is the library's affair, so not every round need be without.
    first, least = (int(count) for count in done.stdout.split())
    assert least < first / 5, done.stdout
