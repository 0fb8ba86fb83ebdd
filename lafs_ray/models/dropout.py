"""Dropout and stochastic depth of the transformer, with masks that cost little on a CPU.

On a CPU torch draws a mask number by number (`bernoulli_`), which took a third of the student's forward. Here two bytes
of a random stream decide about each number, so a rate is met to 1/131,072. On other devices, and in compiled code,
torch's own operators run. Everything random comes from torch's generator of the device: the same seed gives the same
masks, also when activations are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lafs_ray.models.kept_rows import KeptRows, keep_rows
from lafs_ray.models.placement import uses_gpu_form

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero numbers at `rate` and scale the others by 1/(1 - rate), in train mode.

    Args:
        rate: in [0, 1].
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map [...] to the same shape."""
        return dropout(x, self.rate, training=self.training)

    def extra_repr(self) -> str:
        """Return the rate, for `repr`."""
        return f"rate={self.rate}"


def dropout(x: Tensor, rate: float, *, training: bool) -> Tensor:
    """Zero numbers of x [...] at `rate`, scale the others by 1/(1 - rate)."""
    if not training or rate == 0.0:
        return x
    if not _draws_bytes(x):
        # What F.dropout calls on a GPU; on a CPU that would be three operators.
        return torch.native_dropout(x, rate, True)[0]
    return x * _scaled_mask(x, rate)


def add_dropped(residual: Tensor, branch: Tensor, rate: float, *, training: bool) -> Tensor:
    """Return residual + dropout(branch), [...] each, in one pass where the mask is drawn here."""
    if not training or rate == 0.0 or not _draws_bytes(branch) or residual.dtype != branch.dtype:
        return residual + dropout(branch, rate, training=training)
    return torch.addcmul(residual, branch, _scaled_mask(branch, rate))


def drop_path(branch: Tensor, factors: Tensor) -> Tensor:
    """Scale whole samples of a branch [B, …] by factors [B], which are 0 for dropped samples."""
    return branch * factors.view(-1, *[1] * (branch.ndim - 1)).to(branch.dtype)


class StochasticDepth(nn.Module):
    """Which samples each residual branch of a network is dropped for, drawn for all branches at once.

    Args:
        branches: number of residual branches.
        rate: of dropped samples, in [0, 1).
        per_sample: draw each sample on its own (the paper's form: the branch is computed for all, and set to zero), or
            compute the branch only for a fixed number of samples, round(B·(1 - rate)) and at least 1 (DINOv2's form).
            In both, what is kept is scaled so that the mean stays.
    """

    def __init__(self, branches: int, rate: float, *, per_sample: bool) -> None:
        super().__init__()
        self.branches, self.rate, self.per_sample = branches, rate, per_sample

    def forward(self, x: Tensor) -> Sequence[Tensor | KeptRows | None]:
        """Return for each branch over x [B, …]: factors [B], the samples kept, or None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return [None] * self.branches
        batch = len(x)
        if self.per_sample:
            keep = 1.0 - self.rate
            factors = torch.empty(self.branches, batch, device=x.device).bernoulli_(keep) / keep
            return list(factors.unbind())
        kept = max(1, round(batch * (1.0 - self.rate)))
        if kept == batch:
            return [None] * self.branches
        return keep_rows(torch.rand(self.branches, batch, device=x.device).argsort(dim=1), kept)


def _draws_bytes(x: Tensor) -> bool:
    return not (uses_gpu_form(x) or torch.compiler.is_compiling())


def _scaled_mask(like: Tensor, rate: float) -> Tensor:
    """Draw 0 for dropped numbers and the scale for the others, in shape and dtype of `like`."""
    dropped = round(rate * _LEVELS)
    if dropped == _LEVELS:
        return torch.zeros_like(like)
    # Not `item()`: a step reads no tensor back, and this is how tests find one that does.
    seed = int(torch.randint(0, 2**63 - 1, (1,)).numpy()[0])
    words = np.random.SFC64(seed).random_raw(-(-like.numel() // 4))
    levels = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
    kept = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty(like.shape, dtype=like.dtype))
    return kept.mul_(_LEVELS / (_LEVELS - dropped))
