"""Read and write verification pairs in insightface's `.bin`: a pickle of 2P images and P labels.

These files come from many sources and many versions of Python, numpy and OpenCV. Whatever plain container holds the
bytes and the truths is read: lists, tuples, arrays of bytes, numbers or objects, rows or columns. Nothing is executed
(`plain_pickle.py`).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.data.plain_pickle import Array, ForeignGlobal, load_plain
from lafs_ray.errors import DataError

_FORMAT = "a pickle of (list of 2P encoded images, list of P bools)"
_FIX = "take the file from insightface's model zoo again, or write it with write_pairs"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Verification pairs; images 2i and 2i+1 are pair i.

    Args:
        images: encoded images (JPEG or PNG), 2P of them.
        same: whether a pair shows one identity, bool [P].
    """

    images: list[bytes]
    same: NDArray[np.bool_]


def read_pairs(uri: str) -> Pairs:
    """Read an insightface verification `.bin`; nothing in the file is executed.

    Raises:
        DataError: the file is missing, no such pickle, refers to anything but plain values, or its counts disagree.
    """
    try:
        content = load_plain(filesystem.read_bytes(uri))
    except DataError:
        raise
    except ForeignGlobal as error:
        raise DataError(
            uri,
            found=f"a pickle that refers to {error}",
            expected=f"{_FORMAT}, which needs no code",
            fix="do not trust this file: take it from its publisher again",
        ) from None
    except Exception as error:
        # A damaged pickle may raise any exception.
        found = f"no readable pickle ({type(error).__name__}: {error})"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX) from error
    if isinstance(content, Array):
        content = content.items()
    if not isinstance(content, list | tuple) or len(content) != 2:
        found = f"a pickle of a {type(content).__name__}"
        raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)
    images, same = _plain_list(uri, content[0]), _plain_list(uri, content[1])
    if len(images) == len(same) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in images):
        images = [image for pair in images for image in pair]
    copies: dict[int, bytes] = {}
    return _validated(uri, [_image(uri, i, image, copies) for i, image in enumerate(images)], same)


def _plain_list(uri: str, value: object) -> Sequence[Any]:
    if isinstance(value, Array):
        return value.items()
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, bytes | bytearray):
        return list(value)
    found = f"a {type(value).__name__} instead of a list"
    raise DataError(uri, found=found, expected=_FORMAT, fix=_FIX)


def _image(uri: str, number: int, value: object, copies: dict[int, bytes]) -> bytes:
    if isinstance(value, Array) and value.is_bytes:
        return value.content
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray):
        # Copied once: a list may refer to the same one a million times.
        if id(value) not in copies:
            copies[id(value)] = bytes(value)
        return copies[id(value)]
    found = f"a {type(value).__name__}"
    raise DataError(f"{uri}, image {number}", found=found, expected="the bytes of an encoded image", fix=_FIX)


def _validated(uri: str, images: list[bytes], same: Sequence[Any]) -> Pairs:
    if not images or len(images) != 2 * len(same):
        found = f"{len(images)} images and {len(same)} pair labels"
        expected = "two images per pair label, and at least one pair"
        raise DataError(uri, found=found, expected=expected, fix=_FIX)
    for number, label in enumerate(same):
        if not isinstance(label, int | float) or label not in (0, 1):
            subject = f"{uri}, pair {number}"
            # Not repr in general: a list may contain itself, an int have a million digits.
            text = f"a {type(label).__name__}"
            if label is None or (isinstance(label, int | float) and abs(label) < 1 << 62):
                text = str(label)
            found = f"{text} as pair label"
            raise DataError(subject, found=found, expected="True or False", fix=_FIX)
    return Pairs(images, np.array(same, dtype=bool))


def write_pairs(uri: str, images: Sequence[bytes], same: Sequence[bool] | NDArray[np.bool_]) -> None:
    """Write a verification `.bin` that insightface's tools read, atomically.

    Args:
        uri: path or URI of the file.
        images: encoded images, 2P of them; 2i and 2i+1 are pair i.
        same: whether pair i shows one identity, P of them.

    Raises:
        DataError: the counts disagree, or the file cannot be written.
    """
    checked = _validated(uri, list(images), [bool(label) for label in same])
    with filesystem.atomic_write(uri) as file:
        # Protocol 4 is what insightface's own writer used and Python >= 3.4 reads.
        pickle.dump((checked.images, checked.same.tolist()), file, protocol=4)
