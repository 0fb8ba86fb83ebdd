"""Pairs of faces of a set that probably show one person, as one file.

    *.safetensors   `faces` int64 [F], those that have neighbors, ascending; `others` int64 [P], the neighbors of one
                    face after those of another; `starts` int64 [F+1], where each face's begin
    its metadata    `lafs_ray`: set, network and checksum, as JSON

A run draws pairs from it (`lafs_ray.data.sampler`); `lafs mine-neighbors` writes it. Shape letters: F faces, P pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import DataError

FORMAT, VERSION = "lafs_ray neighbors", 1
_COMMAND = "lafs mine-neighbors NETWORK FACES OUT"
_MAX_HEADER = 1 << 20
_NAMES = ("faces", "starts", "others")


@dataclass(frozen=True, eq=False)
class NeighborPairs:
    """The neighbors of each face that has some.

    Args:
        faces: their numbers in the set, ascending, int64 [F].
        starts: where each one's neighbors begin in `others`, then P: int64 [F + 1].
        others: the neighbors, int64 [P].
    """

    faces: NDArray[np.int64]
    starts: NDArray[np.int64]
    others: NDArray[np.int64]

    @classmethod
    def from_pairs(cls, first: NDArray[np.int64], second: NDArray[np.int64]) -> NeighborPairs:
        """Return the table of pairs int64 [P] each, in any order, each pair in both directions."""
        order = np.lexsort((second, first))
        faces, begin = np.unique(first[order], return_index=True)
        starts = np.append(begin, len(first)).astype(np.int64)
        return cls(faces.astype(np.int64), starts, second[order].astype(np.int64))

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw pairs: a face, each equally likely, and one of its neighbors, likewise; int64 [count, 2]."""
        rows = generator.integers(len(self.faces), size=count)
        begin, stop = self.starts[rows], self.starts[rows + 1]
        return np.stack((self.faces[rows], self.others[generator.integers(begin, stop)]), axis=1)

    @property
    def hash(self) -> str:
        """Hash of all pairs."""
        digest = hashlib.blake2b(digest_size=16)
        for name in _NAMES:
            digest.update(np.ascontiguousarray(getattr(self, name), "<i8").data)
        return digest.hexdigest()

    def is_table_of(self, images: int) -> bool:
        """Return whether the arrays are a table of pairs of images 0 … `images`-1."""
        faces, starts, others = self.faces, self.starts, self.others
        one_dim = all(getattr(self, name).ndim == 1 and getattr(self, name).dtype == np.int64 for name in _NAMES)
        return bool(
            one_dim
            and len(faces)
            and len(starts) == len(faces) + 1
            and (starts[0], starts[-1]) == (0, len(others))
            and (np.diff(starts) > 0).all()
            and (np.diff(faces) > 0).all()
            and 0 <= faces[0] <= faces[-1] < images
            and 0 <= others.min() <= others.max() < images
            and (others != np.repeat(faces, np.diff(starts))).all()
        )


def write_neighbors(uri: str, pairs: NeighborPairs, fingerprint: str, images: int, details: Mapping[str, Any]) -> None:
    """Write the pairs of a set, atomically.

    Args:
        uri: the file.
        pairs: of the set.
        fingerprint: of the set, see `FaceSet.fingerprint`.
        images: in the set.
        details: for readers, such as the network's path.
    """
    stamp = {"format": FORMAT, "version": VERSION, "set": fingerprint, "images": images, "hash": pairs.hash, **details}
    tensors = {name: np.ascontiguousarray(getattr(pairs, name)) for name in _NAMES}
    with filesystem.atomic_write(uri) as file:
        file.write(save(tensors, {"lafs_ray": json.dumps(stamp)}))


def read_neighbors(uri: str, fingerprint: str, images: int) -> NeighborPairs:
    """Read the pairs of a set.

    Args:
        uri: the file.
        fingerprint: of the set.
        images: in the set.

    Raises:
        DataError: the file is missing, damaged or of another kind, or of another set.
    """
    try:
        with reading.open_input(uri) as file:
            # Not all of a file of any kind and size.
            begin = 8 + int.from_bytes(file.read_at(8, 0), "little")
            if not 8 < begin <= min(_MAX_HEADER, file.size()):
                raise ValueError("no header of this size")
            stamp = json.loads(json.loads(bytes(file.read_at(begin - 8, 8)))["__metadata__"]["lafs_ray"])
            if (stamp["format"], stamp["version"]) != (FORMAT, VERSION):
                raise ValueError("another format or version")
            of_set = stamp["set"], stamp["images"]
            pairs = NeighborPairs(**load(bytes(file.read_at(file.size(), 0))))
    except DataError as error:
        fix = f"{error.fix}; or make it: {_COMMAND}"
        raise DataError(error.subject, found=error.found, expected=error.expected, fix=fix) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(uri, f"no file of neighbors ({type(error).__name__})") from None
    if of_set != (fingerprint, images):
        raise DataError(
            uri,
            found=f"neighbors of another set of {of_set[1]} images ({of_set[0]})",
            expected=f"neighbors of this one of {images} ({fingerprint})",
            fix=f"{_COMMAND}, with the set that the run trains on",
        )
    if stamp.get("hash") != pairs.hash or not pairs.is_table_of(images):
        raise _unreadable(uri, "numbers that are not those that were written")
    return pairs


def _unreadable(uri: str, found: str) -> DataError:
    return DataError(uri, found=found, expected="a file of `lafs mine-neighbors`", fix=f"copy it again, or {_COMMAND}")
