"""What a step of the base model does on a GPU, counted on tensors without data and held to budgets."""

from __future__ import annotations

import pytest
import torch

from benchmarks.fake_step import config_of
from benchmarks.list_launches import slow_launches
from benchmarks.step_counts import ADAMW, CLIP, EMA, LOSS, LOSS_BACKWARD, LOSS_PARTS, StepCounts, count_step

IMAGES = 256


@pytest.fixture(scope="module")
def counts() -> StepCounts:
    """Of the default settings, eager."""
    return count_step(config_of("base", IMAGES, 65536))


def test_step__no_scalar_is_read(counts: StepCounts) -> None:
    """The host waits for no value of the device; fake tensors would refuse, too."""
    assert counts.scalar_reads == 0
    assert counts.total_ops > 1000, "it was counted"


def test_step__dispatched_operators(counts: StepCounts) -> None:
    """1,449 eager, 35 more with diagnostics: 9 ms of the host at 6 µs each, a GPU's time for 8 images (estimated)."""
    assert counts.total_ops <= 1460


def test_step__diagnostics_of_a_step_that_reports(counts: StepCounts) -> None:
    """They read the scores of the global views, 11 MB an image, and only where a report follows."""
    reporting = count_step(config_of("base", IMAGES, 65536), reports=True)
    assert 30 <= reporting.total_ops - counts.total_ops <= 40
    assert 10e6 < (reporting.elementwise_bytes() - counts.elementwise_bytes()) / IMAGES < 13e6
    assert reporting.scalar_reads == 0


def test_step__saved_activations(counts: StepCounts) -> None:
    """Bytes that an image keeps until the backward pass: 200 MB, of which 10 for the joined outputs of attention."""
    assert 150e6 < counts.saved / IMAGES <= 200e6


def test_step__peak_of_the_loss(counts: StepCounts) -> None:
    """Scores and their gradient in bfloat16 are 0.67 GB of it."""
    assert 0.67e9 < counts.loss_peak <= 0.95e9


def test_step__elementwise_bytes(counts: StepCounts) -> None:
    """Of operators that are no matrix product: 1.76 GB an image eager; the loss 65 MB."""
    assert counts.elementwise_bytes() / IMAGES <= 1.8e9
    assert counts.elementwise_bytes(LOSS, LOSS_PARTS, LOSS_BACKWARD) / IMAGES <= 70e6


def test_step__lists_of_tensors(counts: StepCounts) -> None:
    """Clipping, optimizer and teacher are a few operators over all tensors at once."""
    for stage, most in ((CLIP, 8), (ADAMW, 6), (EMA, 16)):
        assert 0 < sum(count for (of, _), count in counts.ops.items() if of == stage) <= most, stage


def test_step__lists_in_few_launches(counts: StepCounts) -> None:
    """No list operator falls back to a launch for each tensor, 145 of the base model."""
    assert not counts.slow_lists, counts.slow_lists
    assert counts.ops[CLIP, "_foreach_mul_"] == counts.ops[EMA, "_foreach_mul_"] == 1


def testslow_launches__of_lists() -> None:
    """Lists of other shapes, strides or dtypes are slow; a number of the same dtype, and a copy to another, are not."""
    tensors = [torch.zeros(2, 3), torch.zeros(4)]
    factors = [torch.ones(()), torch.ones(())]
    turned = [torch.zeros(3, 2).t(), torch.zeros(4)]
    narrow = [tensor.bfloat16() for tensor in tensors]
    assert slow_launches("_foreach_mul_", (tensors, factors)) == 2
    assert slow_launches("_foreach_add_", (tensors, turned)) == 2
    assert slow_launches("_foreach_add_", (tensors, narrow)) == 2
    assert slow_launches("_foreach_mul_", (narrow, torch.ones(()))) == 2
    assert slow_launches("_foreach_mul_", (tensors, [each.clone() for each in tensors])) == 0
    assert slow_launches("_foreach_mul_", (tensors, torch.ones(()))) == 0
    assert slow_launches("_foreach_copy_", (narrow, tensors)) == 0
    assert slow_launches("mul_", (tensors[0], 2.0)) == 0


def test_step__activation_checkpointing() -> None:
    """It keeps a block's input alone: 27 MB an image."""
    counts = count_step(config_of("base", IMAGES, 65536, activation_checkpointing=True))
    assert counts.saved / IMAGES <= 32e6
    assert counts.scalar_reads == 0
