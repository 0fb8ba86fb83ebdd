"""What torch.compile makes of a step in the form for GPUs: how many graphs, no break, nothing compiled later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.methods import chunked_loss
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.training import compile as compiling
from lafs_ray.training.train_step import train_step
from lafs_ray.transforms.device_views import DeviceViews
from lafs_ray.transforms.packed_faces import PACKED
from lafs_ray.transforms.params import sample_view_params
from tests.ranks import on_ranks
from tests.training.builds import built, pretrain
from tests.training.test_compile import batch
from tests.transforms.faces import smooth_images, view_settings


@pytest.fixture(autouse=True)
def traced_only() -> Iterator[None]:
    """Graphs are traced and run operator by operator, so that no compiler is needed."""
    torch._dynamo.reset()
    counters.clear()
    traced = partial(torch.compile, backend="eager")
    with mock.patch.object(torch, "compile", traced), gpu_form_everywhere():
        yield
    torch._dynamo.reset()


OPTIONS = [["accumulation=2"], ["compute.activation_checkpointing=true"]]


def counted_steps(options: list[str], wrap: Callable[[nn.Module], nn.Module] = lambda network: network) -> list[int]:
    """Graphs after each of three steps of a compiled run; there is no break."""
    config = pretrain("compute.precision=bfloat16", "head.num_prototypes=64", *options)
    training = built(config)
    compiling.compile_training(training, config)
    training.network = wrap(training.network)
    assert training.task.loss_part is not chunked_loss.part_loss  # type: ignore[attr-defined]
    graphs = []
    for step in range(3):
        hparams = training.hparams(step) | {"lr": 1e-3}
        # The first step that computes diagnostics is not the first step.
        metrics = train_step(training, batch("pretrain", step), hparams, reports=step == 1)
        assert ("kl" in metrics) == (step == 1)
        graphs.append(counters["stats"]["unique_graphs"])
        assert 0 < float(metrics["loss"]) < 10
    assert not counters["graph_break"], counters["graph_break"]
    return graphs


@pytest.mark.parametrize("options", OPTIONS)
def test_step__graphs(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Student on two lengths and teacher, inner blocks and the last, loss and diagnostics; all in the first step."""
    # Four images in two parts.
    monkeypatch.setattr(chunked_loss, "_NUMBERS", 4 * 4 * 64 // 2 + 1)
    assert counted_steps(options) == [8, 8, 8]


def ranks_graphs(rank: int, num_ranks: int) -> list[list[int]]:
    """Graphs of each case on this rank, under DDP."""
    del rank, num_ranks
    found = []
    for options in ([], *OPTIONS):
        torch._dynamo.reset()
        counters.clear()
        traced = partial(torch.compile, backend="eager")
        with mock.patch.object(torch, "compile", traced), gpu_form_everywhere():
            found.append(counted_steps(options, DistributedDataParallel))
    return found


@pytest.mark.long
def test_step__graphs_on_two_ranks(tmp_path: Path) -> None:
    """DDP, whose reducer reads gradients as they come, adds no graph, break or recompilation."""
    (both,) = on_ranks(tmp_path, (2, ranks_graphs, ()))
    assert both == [[[8, 8, 8]] * 3] * 2


def test_views__graphs() -> None:
    """Crops, colors and blur of global and of local views, and their blur along both axes; none for another batch."""
    settings = view_settings(source="cached")
    images, zeros = smooth_images(2), np.zeros(2, dtype=np.int64)
    landmarks = np.full((2, 2, 196, 2), 50, dtype=np.float16)
    views, plain = (DeviceViews(settings, None, torch.device("cpu")) for _ in range(2))
    assert compiling.compile_views(views, 2, torch.device("cpu")) == ""
    first = counters["stats"]["unique_graphs"]
    assert views.operations.blur_along is not plain.operations.blur_along
    for epoch in range(2):
        params = sample_view_params(settings, 0, zeros + epoch, zeros, np.arange(2))
        rows = {PACKED: torch.from_numpy(views.layout.pack(images, params, landmarks))}
        expected = plain(rows)
        assert all(torch.equal(value, expected[name]) for name, value in views(rows).items())
    assert counters["stats"]["unique_graphs"] == first == 8
    assert not counters["graph_break"]
