"""Imports of torchvision and timm work in a fresh process, whatever state the install is in."""

from __future__ import annotations

import subprocess
import sys


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_timm__fresh_process_twice() -> None:
    """A fresh process gets a working timm, and the same module a second time."""
    code = (
        "from lafs_ray.compat import import_timm, import_torchvision\n"
        "timm, torchvision = import_timm(), import_torchvision()\n"
        "assert import_timm() is timm and import_torchvision() is torchvision\n"
        "import torchvision.transforms\n"
        "assert torchvision.transforms is not None\n"
        "print(len(timm.list_models('resnet18')))"
    )
    assert int(_run(code)) == 1


def test_import_timm__after_a_failed_import() -> None:
    """An earlier attempt, which may have left half-made modules behind, does no harm."""
    code = (
        "import contextlib\n"
        "with contextlib.suppress(RuntimeError):\n"
        "    import torchvision\n"
        "from lafs_ray.compat import import_timm\n"
        "print(import_timm().__name__)"
    )
    assert _run(code) == "timm"


def test_import_torchvision__healthy_install() -> None:
    """A torchvision that imports is returned as it is; no operator is declared."""
    code = (
        "import sys, types\n"
        "healthy = sys.modules['torchvision'] = types.ModuleType('torchvision')\n"
        "from lafs_ray import compat\n"
        "assert compat.import_torchvision() is healthy\n"
        "print(compat._declare_operators.cache_info().currsize)"
    )
    assert _run(code) == "0"


def test_import_torchvision__another_failure() -> None:
    """Only the known symptom is handled; any other error reaches the user unchanged."""
    code = (
        "import importlib\n"
        "from lafs_ray import compat\n"
        "def fail(name): raise RuntimeError('disk on fire')\n"
        "importlib.import_module = fail\n"
        "try:\n"
        "    compat.import_torchvision()\n"
        "except RuntimeError as error:\n"
        "    print(error)"
    )
    assert _run(code) == "disk on fire"


def test_models__do_not_import_timm() -> None:
    """timm costs seconds and is imported by those alone who ask for one of its models."""
    code = (
        "import sys\n"
        "import lafs_ray.models.fvit, lafs_ray.methods.dino_loss\n"
        "import lafs_ray.models.checkpoints.state_dicts\n"
        "print([name for name in ('timm', 'torchvision') if name in sys.modules])"
    )
    assert _run(code) == "[]"
