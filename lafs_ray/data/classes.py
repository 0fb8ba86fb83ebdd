"""Class numbers from 0 without gaps for the labels of a set, whatever the file's header claims.

Labels may be ids of a catalogue, and insightface's writer makes an identity record for each run of a label, so neither
the highest label nor the number of identity records is the number of identities. A softmax has one class for each label
that occurs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.label_numbers import LabelNumbers
from lafs_ray.data.packed_set import MAX_LABELS, PackedLabels
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabeledFaces:
    """A set whose labels are class numbers.

    Args:
        faces: the set; its labels are below `num_classes`, or -1.
        labels: of its images, int64 [num_images].
        num_classes: number of classes.
    """

    faces: FaceSet
    labels: NDArray[np.int64]
    num_classes: int


def number_classes(path: str, faces: FaceSet) -> LabeledFaces:
    """Return the set with class numbers as labels.

    A packed set keeps its labels, whose number is in its manifest. Elsewhere labels with gaps are renumbered, in
    ascending order.

    Args:
        path: of the set, for messages.
        faces: the set.

    Raises:
        DataError: labels are too large to be exact, or contradict a manifest; or the files are of several packed sets,
            whose labels mean different identities.
    """
    labels = faces.labels()
    known = np.unique(labels[labels >= 0])
    highest = int(known.max(initial=-1))
    if highest >= MAX_LABELS:
        raise DataError(
            path,
            found=f"labels up to {highest}",
            expected=f"labels below {MAX_LABELS}: they are float32 in the file, and larger ones are rounded, so that "
            "two identities may share one",
            fix="number the identities from 0, and write the file again",
        )
    packed = {table.uri: table for table in faces.identities if isinstance(table, PackedLabels)}
    if len(packed) > 1:
        raise DataError(
            path,
            found=f"{len(packed)} packed sets: {', '.join(sorted(packed)[:3])}",
            expected="one set: the labels of each count its own identities from 0",
            fix="pack their sources into one set",
        )
    if packed and all(isinstance(table, PackedLabels) for table in faces.identities):
        num_classes = next(iter(packed.values())).identities
        if highest >= num_classes:
            found = f"labels up to {highest}"
            expected = f"labels from 0 to {num_classes - 1}, as the manifest says"
            raise DataError(path, found=found, expected=expected, fix="copy the set again, or pack it again")
        return LabeledFaces(faces, labels, num_classes)
    listed = faces.num_identities
    if listed not in (None, len(known)):
        logger.warning("%s lists %d identities, and its images have %d labels, which count", path, listed, len(known))
    if highest + 1 == len(known):
        return LabeledFaces(faces, labels, len(known))
    logger.warning("%s: %d labels from %d to %d are renumbered from 0", path, len(known), known[0], highest)
    numbers = LabelNumbers(known)
    return LabeledFaces(
        replace(faces, label_numbers=(numbers,) * len(faces.shard_uris)), numbers.of(labels), len(known)
    )


def number_classes_from(first: int, labeled: LabeledFaces) -> LabeledFaces:
    """Return a set whose classes begin with a number, after those of other sets.

    Args:
        first: number of its first class.
        labeled: the set with classes from 0; `num_classes` stays theirs.
    """
    faces, labels = labeled.faces, labeled.labels
    numbers = faces.label_numbers or (LabelNumbers(np.arange(labeled.num_classes)),) * len(faces.shard_uris)
    moved = tuple(replace(one, first=one.first + first) for one in numbers)
    return replace(labeled, faces=replace(faces, label_numbers=moved), labels=np.where(labels < 0, -1, labels + first))
