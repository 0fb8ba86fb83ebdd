"""What a compiled block of the base model moves on a GPU, as Inductor schedules it there, held to a budget."""

from __future__ import annotations

import pytest
from torch._inductor import config as inductor_config

from benchmarks.fake_step import config_of
from benchmarks.fused_bytes import block_kernels
from benchmarks.gpu_fusion import Kernel

pytestmark = pytest.mark.skipif(
    not hasattr(inductor_config.triton, "mix_order_reduction"),
    reason="Inductor of this torch does not join sums over tokens with those over a row",
)

VIEWS = 600
TOKENS = VIEWS * 197


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """Of an inner block of the student, forward and backward."""
    return block_kernels(config_of("base", 256, 65536), VIEWS, trains=True, class_only=False)


def test_block__bytes_of_a_token(kernels: list[Kernel]) -> None:
    """103.1 KB, of which 0.5 are weights: 0.93 GB an image in all blocks and the loss (benchmarks/RESULTS.md)."""
    assert 50e3 < sum(kernel.size for kernel in kernels) / TOKENS <= 104e3


def test_block__layer_norms_are_one_kernel_each(kernels: list[Kernel]) -> None:
    """Scheduled as for a GPU: mean, variance and normalization read the input once, float32 for nine tenths of it."""
    norms = [kernel for kernel in kernels if {"aten.var_mean.correction", "aten.rsqrt.default"} <= set(kernel.names)]
    assert len(norms) == 2
    assert all(3 * 768 < kernel.read / TOKENS <= 4 * 768 * 1.01 for kernel in norms)


def test_block__gradients_of_layer_norms_in_few_passes(kernels: list[Kernel]) -> None:
    """A norm's own sums over the tokens and those over a row are one kernel, and its input is not computed again."""
    sums = [kernel for kernel in kernels if {"aten.mean.dim", "aten.sum.dim_IntList"} <= set(kernel.names)]
    assert 2 <= len([kernel for kernel in sums if kernel.read / TOKENS > 1e3]) <= 3
    added = [kernel for kernel in kernels if "aten.addcmul.default" in kernel.names]
    assert len(added) == 2, "the two additions of the forward pass"
