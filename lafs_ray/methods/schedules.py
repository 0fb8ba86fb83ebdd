"""Learning rate, weight decay, momentum and temperature as pure functions of the step or epoch.

A schedule computes one value at a time: a resumed run needs neither an array over the whole run nor
a position. All reproduce the released code's tables (`cosine_scheduler` in `utils.py`), ends
included: a warm-up starts at `start`, reaches `base` on its last step and repeats it on the next;
the cosine ends one step before `final`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from `start` to `base`, then half a cosine from `base` towards `final`.

    Args:
        base: value at the end of the warm-up.
        final: value that the cosine would reach at step `total_steps`.
        total_steps: steps of the whole run, warm-up included.
        warmup_steps: steps of the warm-up; 0 begins at `base`, 1 spends one step at `start`.
        start: value at step 0 of the warm-up.
    """

    base: float
    final: float
    total_steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __post_init__(self) -> None:
        assert self.total_steps > 0, f"a run of {self.total_steps} steps has no schedule"
        assert 0 <= self.warmup_steps <= self.total_steps, (
            f"a warm-up of {self.warmup_steps} steps does not fit a run of {self.total_steps}"
        )

    def __call__(self, step: int) -> float:
        """Return the value at optimizer step `step`, counted from 0."""
        assert 0 <= step < self.total_steps, f"step {step} of a run of {self.total_steps}"
        if step < self.warmup_steps:
            return _linear(self.start, self.base, step, self.warmup_steps)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.final + 0.5 * (self.base - self.final) * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class LinearEpochs:
    """Linear from `start` to `end` over the first epochs, then `end`; constant within an epoch.

    For the teacher's temperature. Reference: `DINOLoss` in `lafs_train.py`.

    Args:
        start: value in epoch 0.
        end: value in epoch `warmup_epochs - 1` and in every later one.
        warmup_epochs: epochs of the warm-up; 0 gives `end` throughout, 1 gives `start` once.
        num_epochs: epochs of the whole run.
    """

    start: float
    end: float
    warmup_epochs: int
    num_epochs: int

    def __post_init__(self) -> None:
        assert 0 <= self.warmup_epochs <= self.num_epochs, (
            f"{self.warmup_epochs} warm-up epochs do not fit a run of {self.num_epochs}"
        )

    def __call__(self, epoch: int) -> float:
        """Return the value in epoch `epoch`, counted from 0."""
        assert 0 <= epoch < self.num_epochs, f"epoch {epoch} of a run of {self.num_epochs}"
        if epoch < self.warmup_epochs:
            return _linear(self.start, self.end, epoch, self.warmup_epochs)
        return self.end


@dataclass(frozen=True)
class Staircase:
    """A piecewise constant value, 0 after the last piece.

    Args:
        stairs: pairs of the step that ends a piece (exclusive) and its value, in order.
    """

    stairs: tuple[tuple[int, float], ...]

    def __call__(self, step: int) -> float:
        """Return the value at optimizer step `step`, counted from 0."""
        return next((value for end, value in self.stairs if step < end), 0.0)


def _linear(start: float, end: float, index: int, count: int) -> float:
    """Return value `index` of `count` evenly spaced ones from `start` to `end`; one is `start`."""
    return start if count == 1 else start + (end - start) * index / (count - 1)
