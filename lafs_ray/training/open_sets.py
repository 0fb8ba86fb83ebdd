"""The sets of a run: opened, their identities numbered, their images chosen, and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.data import Data
from lafs_ray.config.finetune import FinetuneConfig, Subset
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.classes import LabeledFaces, number_classes, number_classes_from
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.mix_order import quantize_shares
from lafs_ray.data.mixed_faces import MixedFaces, SetOfMix, TrainingFaces
from lafs_ray.data.subset import fraction_of_images, images_per_identity
from lafs_ray.errors import ConfigError, DataError


@dataclass(frozen=True)
class OpenedSets:
    """The sets of a run, in the order of its configuration.

    Args:
        faces: of a few-shot run, the subset of each.
        num_classes: identities of the full sets of a labeled run.
        num_identities: identities among `faces`; None if a set does not list them.
    """

    faces: tuple[FaceSet, ...]
    num_classes: int | None
    num_identities: int | None


def open_sets(config: TrainConfig) -> OpenedSets:
    """Open the sets of a run, and sample their subsets.

    No identity is in two sets: the classes of each set follow those of the sets before it.

    Raises:
        UserError: one is missing, damaged or contradicts the configuration, or two are the same.
    """
    opened = tuple(open_faces(one.path, one.color_order, IMAGE_SIZE) for one in config.data.sets)
    _require_different(config.data, opened)
    if isinstance(config, FinetuneConfig):
        return _labeled(config, opened)
    counts = [faces.num_identities for faces in opened]
    known = [count for count in counts if count is not None]
    return OpenedSets(opened, None, sum(known) if len(known) == len(counts) else None)


def join_sets(data: Data, faces: Sequence[FaceSet]) -> TrainingFaces:
    """Return the sets of a run as one; a set that `data.path` names as it is."""
    if data.mix is None:
        return faces[0]
    counts = quantize_shares([one.share for one in data.sets])
    return MixedFaces(
        tuple(
            SetOfMix(one.path, opened, one.color_order, count)
            for one, opened, count in zip(data.sets, faces, counts, strict=True)
        )
    )


def chosen_images(subset: Subset, faces: FaceSet, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the images that a few-shot run trains on, ascending.

    Raises:
        DataError: identities have too few images.
    """
    if subset.images_per_identity is not None:
        count, short = subset.images_per_identity, subset.short_identities
        return images_per_identity(faces, labels, count, subset.seed, short)
    assert subset.fraction is not None, "the configuration requires one of the two"
    return fraction_of_images(faces, subset.fraction, subset.seed, subset.order)


def _require_different(data: Data, opened: Sequence[FaceSet]) -> None:
    paths: dict[str, str] = {}
    for one, faces in zip(data.sets, opened, strict=True):
        if faces.fingerprint in paths:
            raise DataError(
                "data.mix",
                found=f"the same set as {paths[faces.fingerprint]} and {one.path}",
                expected="different sets",
                fix="name it once, with the sum of the shares",
            )
        paths[faces.fingerprint] = one.path


def _labeled(config: FinetuneConfig, opened: Sequence[FaceSet]) -> OpenedSets:
    """Return the sets with class numbers as labels."""
    labeled: list[LabeledFaces] = []
    num_classes = 0
    for one, faces in zip(config.data.sets, opened, strict=True):
        numbered = number_classes(one.path, faces)
        _require_labels(one.path, numbered.labels, faces.label_place)
        if num_classes:
            numbered = number_classes_from(num_classes, numbered)
        num_classes += numbered.num_classes
        labeled.append(numbered)
    _limit_unlabeled(config.data, [one.labels for one in labeled])
    if config.compute.workers > num_classes:
        raise ConfigError(
            "compute.workers",
            found=f"{config.compute.workers} workers for {num_classes} identities",
            expected="at least one identity per worker, as workers share the class centers",
            fix=f"reduce compute.workers to at most {num_classes}",
        )
    chosen, num_identities = [], 0
    for numbered in labeled:
        faces, labels = numbered.faces, numbered.labels
        if config.data.subset is not None:
            images = chosen_images(config.data.subset, faces, labels)
            faces, labels = faces.subset(images), labels[images]
        chosen.append(faces)
        num_identities += len(np.unique(labels[labels >= 0]))
    return OpenedSets(tuple(chosen), num_classes, num_identities)


def _require_labels(path: str, labels: NDArray[np.int64], place: str) -> None:
    if (labels >= 0).any():
        return
    raise DataError(
        path,
        found=f"no labels: none of {len(labels)} records has an identity",
        expected=f"labeled faces ({place}); stages 1 and 3 learn from identities",
        fix="without labels, start with stage 2, on landmarks of one of three kinds (docs/routes.md): fixed ones, "
        "lafs pretrain lafs data.path=… landmarks.source=template; another tool's, lafs cache-landmarks --from …; "
        "or those of a CNN that learns them on synthetic faces, lafs train-landmarks",
    )


def _limit_unlabeled(data: Data, labels: Sequence[NDArray[np.int64]]) -> None:
    # Records without a label are damaged ones: `Preprocessor` replaces and reports them.
    unlabeled = sum(int((one < 0).sum()) for one in labels)
    if unlabeled > data.max_bad_records:
        raise DataError(
            data.named,
            found=f"{unlabeled} of {sum(map(len, labels))} records have no label",
            expected=f"a label in all but {data.max_bad_records} records (data.max_bad_records)",
            fix="give each identity a number from 0, or leave those records out",
        )
