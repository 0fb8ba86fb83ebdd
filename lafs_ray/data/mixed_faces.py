"""Several face sets as one, whose images are numbered one set after the other."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceRows, FaceSet
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.mix_order import Mix


@dataclass(frozen=True, eq=False)
class SetOfMix:
    """One set of a mix.

    Args:
        path: as the user named it.
        faces: the set, with its own label numbers and cached landmarks.
        color_order: what its images decode to.
        count: of `MIX_PERIOD` images, those of this set.
    """

    path: str
    faces: FaceSet
    color_order: ColorOrder
    count: int


@dataclass(frozen=True, eq=False)
class MixedFaces:
    """The images of several sets, read by number as those of a `FaceSet`.

    Args:
        sets: in the order of their numbers.
    """

    sets: tuple[SetOfMix, ...]

    @property
    def mix(self) -> Mix:
        """Sizes and counts of the sets."""
        return Mix(tuple(one.faces.num_images for one in self.sets), tuple(one.count for one in self.sets))

    @property
    def num_images(self) -> int:
        """Images in all sets."""
        return int(self._first_images[-1])

    @cached_property
    def shard_uris(self) -> tuple[str, ...]:
        """The files of all sets, as `FaceRows.shard` numbers them."""
        return tuple(uri for one in self.sets for uri in one.faces.shard_uris)

    @property
    def fingerprint(self) -> str:
        """Hash of the sets, in this order."""
        return hashlib.blake2b(
            " ".join(one.faces.fingerprint for one in self.sets).encode(), digest_size=16
        ).hexdigest()

    @cached_property
    def _first_images(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(one.faces.num_images for one in self.sets)])

    @cached_property
    def _first_shards(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(one.faces.shard_uris) for one in self.sets)])

    def set_of(self, shard: int) -> tuple[SetOfMix, int]:
        """Return the set that a shard belongs to, and the number of the set's first image."""
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return self.sets[number], int(self._first_images[number])

    def read(self, index: NDArray[np.int64]) -> FaceRows:
        """Read the records of these images, in this order, from all sets at once; see `FaceSet.read`.

        Args:
            index: image numbers in 0 … num_images-1, int64 [n].
        """
        numbers = np.searchsorted(self._first_images, index, side="right") - 1
        needed = np.unique(numbers).tolist()

        def read(number: int) -> FaceRows:
            return self.sets[number].faces.read(index[numbers == number] - self._first_images[number])

        if len(needed) == 1:
            parts = [read(needed[0])]
        else:
            with ThreadPoolExecutor(len(needed)) as pool:
                parts = list(pool.map(read, needed))
        # Rows lie set by set; each goes to where its image was asked for.
        place = np.empty(len(index), np.int64)
        place[np.argsort(numbers, kind="stable")] = np.arange(len(index))
        shards = [part.shard + np.int32(self._first_shards[n]) for n, part in zip(needed, parts, strict=True)]
        images = [image for part in parts for image in part.images]
        errors = [error for part in parts for error in part.errors]
        landmarks = [part.landmarks for part in parts if part.landmarks is not None]
        return FaceRows(
            shard=np.concatenate(shards)[place],
            key=np.concatenate([part.key for part in parts])[place],
            label=np.concatenate([part.label for part in parts])[place],
            images=[images[i] for i in place.tolist()],
            errors=[errors[i] for i in place.tolist()],
            landmarks=np.concatenate(landmarks)[place] if landmarks else None,
        )


TrainingFaces = FaceSet | MixedFaces
"""What a run trains on."""
