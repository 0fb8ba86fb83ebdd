"""Which of two forms of a computation runs: the CPU's, in few passes over memory, or the GPU's, in few launches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

_gpu_form_everywhere = False


def uses_gpu_form(tensor: Tensor) -> bool:
    """Return whether computations on this tensor take the form for GPUs."""
    return _gpu_form_everywhere or tensor.device.type != "cpu"


@contextlib.contextmanager
def gpu_form_everywhere() -> Iterator[None]:
    """Take the form for GPUs on CPUs too: to test that both compute the same, and to count what a GPU would do."""
    global _gpu_form_everywhere
    before, _gpu_form_everywhere = _gpu_form_everywhere, True
    try:
        yield
    finally:
        _gpu_form_everywhere = before
