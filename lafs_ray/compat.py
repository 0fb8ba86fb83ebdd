"""Imports of torchvision, and of timm, which needs it, that work on installs where they would fail.

A torchvision whose compiled part does not load (built for another torch) fails to import with "operator
torchvision::nms does not exist", although we use nothing of that part. It is enough to declare the missing operators,
without an implementation. A working install is not changed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_SYMPTOM = "operator torchvision::"


@functools.cache
def import_torchvision() -> ModuleType:
    """Import torchvision, declaring operators that its compiled part failed to register.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: its import fails for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    # The second attempt must not find modules whose import failed halfway.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_operators()
    return importlib.import_module("torchvision")


@functools.cache
def import_timm() -> ModuleType:
    """Import timm.

    Raises:
        ImportError: timm or torchvision is not installed.
    """
    import_torchvision()
    return importlib.import_module("timm")


@functools.cache
def _declare_operators() -> torch.library.Library:
    """Declare the operators once; they exist as long as the returned object, so it is cached."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _MISSING_OPERATORS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library
