"""Which input a checkpoint expects, found by trying."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lafs_ray.cli.inputs import Trial, try_inputs, verdict

FACES = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3), dtype=np.uint8)


class Faces:
    """Pairs of faces: same ones are equal in red, which is dark; other colors are random."""

    num_images = 400

    def read(self, start: int, stop: int) -> Any:
        faces = FACES[start:stop].copy()
        # Dark, so that only in 0..1 it is neither cut off below 0 nor above 1.
        faces[..., 0] = faces[..., 0] // 3 + 10
        faces[1::2, ..., 0] = faces[0::2, ..., 0]
        different = np.arange(start, stop, 2) // 2 % 2 == 1
        faces[1::2][different, ..., 0] = 105 - faces[0::2][different, ..., 0]
        return faces


class ReadsFirstChannel(nn.Module):
    """A network that expects blue first, so that red is last, with values in 0..1: others are cut off."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 2].flatten(1).clamp(0, 1) - 0.5


def test_try_inputs__finds_order_and_range() -> None:
    """The input that a network was made for is the best one, and told from the others."""
    pairs: Any = SimpleNamespace(uri="pairs", faces=Faces(), same=np.arange(200) % 2 == 0)
    trials = try_inputs(ReadsFirstChannel(), pairs)
    assert (trials[0].order, trials[0].value_range) == ("bgr", "0..1")
    assert trials[0].accuracy == 1
    assert len(trials) == 8
    assert [trial.order for trial in trials if trial.accuracy > 0.9] == ["bgr"]


VERDICTS = [(0.8, "expects bgr, values in -1..1"), (0.899, "do not tell it from: rgb")]


@pytest.mark.parametrize(("second", "text"), VERDICTS)
def test_verdict__knows_its_noise(second: float, text: str) -> None:
    """A lead within two standard errors is no answer."""
    trials = [Trial("bgr", "-1..1", 0.9, 0.01), Trial("rgb", "-1..1", second, 0.01)]
    assert text in verdict(trials)
