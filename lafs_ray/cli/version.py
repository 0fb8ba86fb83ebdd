"""`lafs --version`: the versions and features that results depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

import lafs_ray

_PACKAGES = ("torch", "timm", "ray", "numpy", "opencv-python-headless", "pyarrow")


def version_lines() -> Iterator[str]:
    """Yield a line for the package, for Python and the packages below, for the CPU, and for each GPU."""
    yield f"lafs_ray {lafs_ray.__version__}"
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield f"Python {platform.python_version()}, {packages}"
    # Kernels, and so the last bits of results, depend on these.
    features = torch.backends.cpu.get_cpu_capability()
    yield f"CPU: {platform.machine()}, {os.cpu_count()} logical cores, torch kernels for {features}"
    for number in range(torch.cuda.device_count()):
        yield f"GPU {number}: {torch.cuda.get_device_name(number)}, CUDA {torch.version.cuda}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
