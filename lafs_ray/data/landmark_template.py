"""Template landmarks: N positions that are the same in every aligned face, so that no landmark CNN is needed.

They are a built-in grid over the face, the mean of a landmark cache, or the positions in a file. Letters: N landmarks.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from safetensors import SafetensorError
from safetensors.numpy import load

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.parquet_table import read_parquet
from lafs_ray.data.landmark_cache import STAMP
from lafs_ray.data.packed_set import read_json
from lafs_ray.errors import DataError

FACE_BOX = (16.0, 32.0, 96.0, 112.0)
"""Left, top, right and bottom of the grid's region in an aligned face, in pixels.

In insightface's alignment eyes are at (38, 52) and (74, 52), mouth corners at (42, 92) and (71, 92): the box holds
brows, eyes, nose, mouth and chin; hair, ears and background are outside.
"""

# Parts of a landmark cache that are read for its mean: 262,144 faces, spread over the set.
_MAX_PARTS = 16
_ENDINGS = (".npy", ".csv", ".parquet")
_DAMAGE = (ValueError, OSError, EOFError, pa.ArrowException, KeyError, TypeError, TokenError, MemoryError)
_FIX = "write one row of x and y in pixels for each landmark, or leave out landmarks.template for the built-in grid"


def grid_template(num_landmarks: int) -> NDArray[np.float32]:
    """Return the middles of √N × √N cells of `FACE_BOX`, row by row: float32 [N, 2] in pixels, (x, y)."""
    side = math.isqrt(num_landmarks)
    assert side * side == num_landmarks, num_landmarks
    left, top, right, bottom = FACE_BOX
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    return np.stack((x, y), axis=-1).reshape(-1, 2).astype(np.float32)


def read_template(uri: str, num_landmarks: int) -> NDArray[np.float32]:
    """Read positions, float32 [N, 2] in pixels, (x, y).

    Args:
        uri: a .npy, .csv or .parquet file with a row for each landmark and two columns, x and y; or the folder of a
            landmark cache, whose mean landmarks are taken.
        num_landmarks: N.

    Raises:
        DataError: the file is missing or damaged, has another number of positions, or they are not pixels of a face.
    """
    if filesystem.exists(filesystem.join(uri, STAMP)):
        found: NDArray[Any] = _mean_of_cache(uri)
    else:
        read = next((_READERS[ending] for ending in _ENDINGS if uri.partition("?")[0].endswith(ending)), None)
        if read is None or not filesystem.exists(uri):
            raise DataError(
                uri,
                found="no such file" if read is not None else "neither such a file nor a landmark cache",
                expected=f"a file ({', '.join(_ENDINGS)}), or the folder of cached landmarks",
                fix="correct landmarks.template, or leave it out for the built-in grid",
            )
        try:
            found = read(filesystem.read_bytes(uri))
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(uri, found=reason, expected="two columns of numbers, x and y", fix=_FIX) from None
    return _checked(uri, found, num_landmarks)


def mean_landmarks(folder: str, num_landmarks: int) -> NDArray[np.float32]:
    """Read the mean of a landmark cache that a run learns, float32 [N, 2] in pixels, (x, y).

    Args:
        folder: of the cache.
        num_landmarks: N.

    Raises:
        DataError: there is no cache, it is damaged, or of another number of landmarks.
    """
    if not filesystem.exists(filesystem.join(folder, STAMP)):
        raise DataError(
            folder,
            found="no cached landmarks",
            expected=f"{STAMP} and the parts that it lists",
            fix="correct landmarks.cache, or write it: lafs cache-landmarks --from POINTS SET --out " + folder,
        )
    return _checked(folder, _mean_of_cache(folder), num_landmarks)


def _mean_of_cache(folder: str) -> NDArray[np.float64]:
    """Return the mean of a landmark cache's faces, of 16 parts at most, float64 [N, 2].

    Raises:
        DataError: stamp or part is damaged, or all faces are.
    """
    try:
        names = [str(entry["name"]) for entry in read_json(filesystem.join(folder, STAMP))["parts"]]
        chosen = np.unique(np.linspace(0, len(names) - 1, _MAX_PARTS).astype(int))
        total: Any = 0.0
        count = 0
        for number in chosen.tolist():
            rows = load(filesystem.read_bytes(filesystem.join(folder, names[number])))["landmarks"].astype(np.float64)
            sound = rows[~np.isnan(rows).any(axis=(1, 2))]
            total, count = total + sound.sum(axis=0), count + len(sound)
        mean: NDArray[np.float64] = total / count
    except (*_DAMAGE, SafetensorError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            folder, found=reason, expected="a complete landmark cache", fix="run lafs cache-landmarks again"
        ) from None
    return mean


def _checked(uri: str, found: NDArray[Any], num_landmarks: int) -> NDArray[np.float32]:
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "fiu":
        shape = f"shape {list(found.shape)} of {found.dtype}"
        raise DataError(uri, found=shape, expected=f"numbers of shape [{num_landmarks}, 2]", fix=_FIX)
    if len(found) != num_landmarks:
        raise DataError(
            uri,
            found=f"{len(found)} positions",
            expected=f"{num_landmarks} (model.num_landmarks)",
            fix=f"set model.num_landmarks={len(found)}, or name another template",
        )
    outside = ~((found >= -IMAGE_SIZE) & (found <= 2 * IMAGE_SIZE)).all(axis=1)
    if outside.any():
        row = int(outside.argmax())
        value = f"position {row} at ({found[row, 0]:g}, {found[row, 1]:g})"
        raise DataError(uri, found=value, expected=f"pixels of faces of {IMAGE_SIZE}×{IMAGE_SIZE}", fix=_FIX)
    if num_landmarks > 1 and np.ptp(found, axis=0).max() <= 2:
        low, high = found.min(), found.max()
        raise DataError(
            uri,
            found=f"all positions between {low:g} and {high:g}",
            expected=f"pixels of faces of {IMAGE_SIZE}×{IMAGE_SIZE}, not shares of the image",
            fix=f"multiply them by {IMAGE_SIZE}",
        )
    return found.astype(np.float32)


def _from_npy(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _from_csv(content: bytes) -> NDArray[Any]:
    first = content.decode("utf-8-sig").lstrip().split("\n", 1)[0].lower()
    has_names = any(letter in first for letter in "xy")
    names = None if has_names else ["x", "y"]
    return _columns(csv.read_csv(io.BytesIO(content), csv.ReadOptions(column_names=names)))


def _from_parquet(content: bytes) -> NDArray[Any]:
    return _columns(read_parquet(io.BytesIO(content)))


def _columns(table: pa.Table) -> NDArray[Any]:
    names = {name.strip().lower(): name for name in table.column_names}
    if not {"x", "y"} <= names.keys():
        raise ValueError(f"columns {', '.join(table.column_names)}")
    return np.stack([table[names[name]].cast(pa.float64()).to_numpy() for name in ("x", "y")], axis=1)


_READERS: dict[str, Callable[[bytes], NDArray[Any]]] = {".npy": _from_npy, ".csv": _from_csv, ".parquet": _from_parquet}
