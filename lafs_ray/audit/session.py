"""An audit from the embeddings to its findings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lafs_ray.audit.calibration import Threshold
from lafs_ray.audit.descriptors import Whitening
from lafs_ray.audit.duplicates import Copies, find_copies
from lafs_ray.audit.embeddings import EmbeddedSet, read_embeddings
from lafs_ray.audit.findings import COPIES, FACELESS, LABELS, LEAKS, Finding
from lafs_ray.audit.identities import (
    Identities,
    compare_identities,
    same_identities,
    split_identities,
    strays,
    wrong_labels,
)
from lafs_ray.audit.leaks import SharedIdentities, shared_identities
from lafs_ray.audit.nearest import Apply, Gallery
from lafs_ray.audit.pictures import Pictures, read_pictures
from lafs_ray.data.eval_sets import ImageSource, open_images

logger = logging.getLogger(__name__)

_NEIGHBORS = 10


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """One set with everything that was computed of it.

    Args:
        embedded: its embeddings.
        identities: None without labels.
        pictures: None where they were not read.
    """

    embedded: EmbeddedSet
    identities: Identities | None
    pictures: Pictures | None


@dataclass(frozen=True, eq=False)
class Audit:
    """Findings of an audit.

    Args:
        train: the set that was audited.
        tests: those that it must not overlap with.
        findings: by kind, those of one kind for each test set.
        shared: candidates of shared identities, for each test set.
        approximate: whether neighbors are approximate.
    """

    train: AuditedSet
    tests: tuple[AuditedSet, ...]
    findings: tuple[Finding, ...]
    shared: tuple[SharedIdentities, ...]
    approximate: bool

    @property
    def thresholds(self) -> dict[str, Threshold | None]:
        """Calibrated on the training set: of an image and a center, and of two centers."""
        found = self.train.identities
        if found is None:
            return {}
        return {"image and center": found.image_threshold, "two centers": found.center_threshold}


def run_audit(
    train: str, tests: Sequence[str], folder: str, apply: Apply, *, read_faces: bool = True, exact: bool = False
) -> Audit:
    """Audit a training set, alone and against test sets.

    Args:
        train: Parquet file of its embeddings.
        tests: those of test sets, made by the same network.
        folder: for temporary files: vectors, thumbnails and index, on a disk that all workers reach.
        apply: runs the tasks of a search, here or on Ray.
        read_faces: whether the pictures are read as well.
        exact: never search approximately.

    Raises:
        DataError: a file is missing or damaged, or the faces are not those that were embedded.
    """
    embedded, mean = read_embeddings(train, f"{folder}/train.raw")
    # All inputs first: what cannot be read is said before hours of work.
    places = [_subfolder(folder, f"test{number}") for number in range(len(tests))]
    others = [read_embeddings(uri, f"{place}/vectors.raw", mean)[0] for uri, place in zip(tests, places, strict=True)]
    sources = [_images(one) if read_faces else None for one in (embedded, *others)]
    gallery = Gallery(embedded.vectors, folder, exact)
    logger.info("%s: %d embeddings of %d", train, embedded.num_rows, embedded.vectors.width)
    neighbors = gallery.search(embedded.vectors, _NEIGHBORS, apply)
    identities = compare_identities(embedded, neighbors, folder, apply)
    pictures = _pictures(embedded, sources[0], _subfolder(folder, "train"), None)
    audited = AuditedSet(embedded, identities, pictures)
    findings, audited_tests, shared = [*_label_findings(audited)], [], []
    descriptors = None
    if pictures is not None:
        logger.info("%s: near-duplicates", train)
        descriptors = Gallery(pictures.descriptors, _subfolder(folder, "descriptors"), exact)
        copies = find_copies(pictures, None, neighbors, descriptors, folder, apply)
        findings += _of_copies(COPIES, embedded, embedded, copies)
        rows = pictures.unaligned()
        fit = pictures.template[rows, 0].astype(np.float32)
        findings.append(Finding(FACELESS, embedded, rows, embedded, np.full(len(rows), -1), fit))
    for test, source, place in zip(others, sources[1:], places, strict=True):
        logger.info("%s: %d embeddings against the training set", test.uri, test.num_rows)
        near = gallery.search(test.vectors, _NEIGHBORS, apply)
        own = Gallery(test.vectors, place, exact).search(test.vectors, _NEIGHBORS, apply)
        other = AuditedSet(
            test,
            compare_identities(test, own, place, apply),
            _pictures(test, source, place, None if pictures is None else pictures.whitening),
        )
        if pictures is not None and other.pictures is not None and descriptors is not None:
            copies = find_copies(pictures, other.pictures, near, descriptors, place, apply)
            findings += _of_copies(LEAKS, embedded, test, copies)
        candidates = shared_identities(embedded, test, (identities, other.identities), near, place, apply)
        kept = candidates.flagged
        findings.append(
            Finding(LEAKS[2], embedded, candidates.train[kept], test, candidates.test[kept], candidates.scores[kept])
        )
        audited_tests.append(other)
        shared.append(candidates)
    return Audit(audited, tuple(audited_tests), tuple(findings), tuple(shared), gallery.is_approximate)


def _subfolder(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    return path


def _images(embedded: EmbeddedSet) -> ImageSource | None:
    """Open the pictures of a set; None where it does not name them."""
    if embedded.faces:
        return open_images(embedded.faces)
    logger.warning("%s does not name its faces: pictures are not compared", embedded.uri)
    return None


def _pictures(
    embedded: EmbeddedSet, source: ImageSource | None, folder: str, whitening: Whitening | None
) -> Pictures | None:
    if source is None:
        return None
    logger.info("%s: reading %d pictures of %s", embedded.uri, embedded.num_rows, embedded.faces)
    return read_pictures(embedded, source, folder, whitening)


def _of_copies(kinds: tuple[str, ...], first: EmbeddedSet, second: EmbeddedSet, copies: Copies) -> Iterator[Finding]:
    for kind, kept in zip(kinds, (copies.identical, ~copies.identical), strict=False):
        order = np.argsort(-copies.scores[kept], kind="stable")
        yield Finding(
            kind, first, copies.first[kept][order], second, copies.second[kept][order], copies.scores[kept][order]
        )


def _label_findings(audited: AuditedSet) -> Iterator[Finding]:
    found, embedded = audited.identities, audited.embedded
    if found is None:
        return
    firsts = np.zeros(len(found.labels), np.int64)
    known = np.flatnonzero(found.index >= 0)[::-1]
    firsts[found.index[known]] = known
    rows, others, scores = wrong_labels(found)
    yield Finding(LABELS[0], embedded, rows, embedded, firsts[others] if len(others) else others, scores)
    rows, none, scores = strays(found)
    yield Finding(LABELS[1], embedded, rows, embedded, none, scores)
    first, second, scores = same_identities(found)
    yield Finding(LABELS[2], embedded, firsts[first], embedded, firsts[second], scores)
    identities, examples, scores = split_identities(embedded, found)
    yield Finding(LABELS[3], embedded, firsts[identities], embedded, examples, scores)
