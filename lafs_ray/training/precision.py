"""Whether a processor has the arithmetic that a run asks for."""

from __future__ import annotations

import time

import torch

_SIDE = 256
_REPEATS = 3
# Processors with the arithmetic are faster than in float32, those that imitate it well up to twice
# as slow, those that imitate it badly a hundred times.
_TOO_SLOW = 3.0


def slow_arithmetic(precision: torch.dtype, device: torch.device) -> str:
    """What to say of a precision that costs many times what float32 does; empty if none does.

    Measured on a product of two 256×256 matrices, as what a build of PyTorch makes of a processor's
    instructions is not to be read off either.

    Args:
        precision: of the networks.
        device: where they run; on a GPU nothing is measured.
    """
    if device.type != "cpu" or precision == torch.float32:
        return ""
    times = _product_s(precision) / _product_s(torch.float32)
    if times < _TOO_SLOW:
        return ""
    name = str(precision).removeprefix("torch.")
    return (
        f"compute.precision is {name}, in which this processor takes {times:.0f} times as long for "
        "a product of matrices as in float32: set compute.precision=float32"
    )


def _product_s(precision: torch.dtype) -> float:
    """Seconds that a product takes: the shortest of several, the first of which prepares."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=precision)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
