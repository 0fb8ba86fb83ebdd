"""What torch.compile makes of a step in the form for GPUs: how many graphs, no break, nothing compiled later."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from lafs_ray.methods import chunked_loss
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.training import compile as compiling
from lafs_ray.training.train_loop import train_step
from tests.training.builds import built, pretrain
from tests.training.test_compile import batch


@pytest.fixture(autouse=True)
def traced_only() -> Iterator[None]:
    """Graphs are traced and run operator by operator, so that no compiler is needed."""
    torch._dynamo.reset()
    counters.clear()
    traced = partial(torch.compile, backend="eager")
    with mock.patch.object(torch, "compile", traced), gpu_form_everywhere():
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [["accumulation=2"], ["compute.activation_checkpointing=true"]])
def test_step__graphs(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Student on two lengths and teacher, inner blocks and the last, loss and diagnostics; all in the first step."""
    # Four images in two parts.
    monkeypatch.setattr(chunked_loss, "_NUMBERS", 4 * 4 * 64 // 2 + 1)
    config = pretrain("compute.precision=bfloat16", "head.num_prototypes=64", *options)
    training = built(config)
    compiling.compile_training(training, config)
    assert training.task.loss_part is not chunked_loss.part_loss  # type: ignore[attr-defined]
    graphs, losses = [], []
    for step in range(3):
        metrics = train_step(training, batch("pretrain", step), training.hparams(step) | {"lr": 1e-3})
        graphs.append(counters["stats"]["unique_graphs"])
        losses.append(float(metrics["loss"]))
    assert graphs[0] == graphs[2] == 8
    assert not counters["graph_break"]
    assert all(0 < loss < 10 for loss in losses)
