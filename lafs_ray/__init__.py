"""lafs_ray: landmark-based self-supervised face pretraining (LAFS, CVPR 2024) on Ray.

`load`, `create_model`, `pretrain`, `finetune` and `evaluate` are the Python interface (docs/api.md). They are imported
when first used, so that `import lafs_ray` takes no time.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "FaceModel": "lafs_ray.api.face_model",
    "create_model": "lafs_ray.api.face_model",
    "load": "lafs_ray.api.face_model",
    "Run": "lafs_ray.api.runs",
    "pretrain": "lafs_ray.api.runs",
    "finetune": "lafs_ray.api.runs",
    "evaluate": "lafs_ray.api.runs",
}
__all__ = ["FaceModel", "Run", "__version__", "create_model", "evaluate", "finetune", "load", "pretrain"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'lafs_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
