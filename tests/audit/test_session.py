"""Planted faults are found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lafs_ray.audit.findings import COPIES, FACELESS, LABELS, LEAKS, exclusion_list
from lafs_ray.audit.page import audit_page
from lafs_ray.audit.session import Audit, run_audit
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.errors import DataError
from tests.audit.sets import clustered, write_embeddings
from tests.audit.test_pictures import cropped, face

IDENTITIES, IMAGES = 40, 8
TRUE = np.repeat(np.arange(IDENTITIES), IMAGES)


def audited(folder: Path, train: str, *tests: str, read_faces: bool = False) -> Audit:
    (folder / "scratch").mkdir(exist_ok=True)
    return run_audit(train, tests, str(folder / "scratch"), apply_in_process, read_faces=read_faces)


def rows_of(audit: Audit, kind: str) -> list[int]:
    return sorted(row for one in audit.findings if one.kind == kind for row in one.rows.tolist())


def test_audit__labels(tmp_path: Path) -> None:
    """Swapped labels, a stray, one identity under two labels and two under one are found by their rows."""
    vectors, labels = clustered(TRUE), TRUE.copy()
    labels[[3, 100]] = [20, 5]
    vectors[50] = np.random.default_rng(9).standard_normal(vectors.shape[1])
    # Half of identity 30 gets a new label; identity 39 takes over the label of 38.
    labels[(TRUE == 30) & (np.arange(len(TRUE)) % 2 == 0)] = IDENTITIES
    labels[TRUE == 39] = 38
    audit = audited(tmp_path, write_embeddings(tmp_path / "a.parquet", vectors, labels))
    assert rows_of(audit, LABELS[0]) == [3, 100]
    assert rows_of(audit, LABELS[1]) == [50]
    (same,) = [one for one in audit.findings if one.kind == LABELS[2]]
    assert [(labels[a], labels[b]) for a, b in zip(same.rows, same.others, strict=True)] == [(30, IDENTITIES)]
    (split,) = [one for one in audit.findings if one.kind == LABELS[3]]
    assert labels[split.rows].tolist() == [38]
    assert len(exclusion_list(audit.findings)) == 0, "labels are for a person to decide"


def test_audit__sound_set(tmp_path: Path) -> None:
    """Without faults nothing is claimed."""
    audit = audited(tmp_path, write_embeddings(tmp_path / "a.parquet", clustered(TRUE), TRUE))
    assert [len(one) for one in audit.findings] == [0] * 4
    assert all(audit.thresholds.values())


def test_audit__embedding_that_separates_nothing(tmp_path: Path) -> None:
    """Noise has no thresholds, and no finding."""
    noise = np.random.default_rng(0).standard_normal((len(TRUE), 16)).astype(np.float32)
    audit = audited(tmp_path, write_embeddings(tmp_path / "a.parquet", noise, TRUE))
    assert [*audit.thresholds.values()] == [None, None]
    assert [len(one) for one in audit.findings] == [0] * 4


@pytest.mark.parametrize("labeled", ["both", "train", "test"])
def test_audit__shared_identities(tmp_path: Path, labeled: str) -> None:
    """Identities 0 and 7 of the test set are found in the training set, whichever of the two has labels."""
    test_true = np.repeat([0, 7, *range(IDENTITIES, IDENTITIES + 12)], 6)
    both = clustered(np.concatenate([TRUE, test_true]))
    train = write_embeddings(tmp_path / "a.parquet", both[: len(TRUE)], None if labeled == "test" else TRUE)
    test = write_embeddings(tmp_path / "b.parquet", both[len(TRUE) :], None if labeled == "train" else test_true)
    (found,) = [one for one in audited(tmp_path, train, test).findings if one.kind == LEAKS[2]]
    assert set(TRUE[found.rows].tolist()) == set(test_true[found.others].tolist()) == {0, 7}
    excluded = exclusion_list([found]).to_pylist()
    rows = {int(one["key"].removesuffix(".jpg")) for one in excluded}
    # A training set without labels loses what was found; with labels all images of both identities.
    assert set(TRUE[sorted(rows)].tolist()) == {0, 7}
    assert labeled == "test" or len(rows) == 2 * IMAGES


def test_audit__copies(tmp_path: Path) -> None:
    """Identical pictures and copies that were cropped and encoded again are found within a set and between sets."""
    identities = np.repeat(np.arange(12), 3)
    jpegs = [face(int(n), index % 3) for index, n in enumerate(identities)]
    vectors = clustered(identities)
    jpegs += [jpegs[4], cropped(jpegs[10], 0.1, 0, 1)]
    train = write_embeddings(tmp_path / "a", np.concatenate([vectors, vectors[[4, 10]]]), None, jpegs)
    others = [face(20, 0), jpegs[7], cropped(jpegs[20], 0.08, 0.5, 0.5)]
    test_vectors = np.concatenate([clustered(np.array([20]))[:1], vectors[[7, 20]]])
    test = write_embeddings(tmp_path / "b", test_vectors, None, others)
    audit = audited(tmp_path, train, test, read_faces=True)
    pairs = {
        one.kind: list(zip(one.rows.tolist(), one.others.tolist(), strict=True)) for one in audit.findings if len(one)
    }
    assert pairs == {COPIES[0]: [(4, 36)], COPIES[1]: [(10, 37)], LEAKS[0]: [(7, 1)], LEAKS[1]: [(20, 2)]}
    keys = exclusion_list(audit.findings).column("key").to_pylist()
    assert keys == ["0007.jpg", "0020.jpg", "0036.jpg", "0037.jpg"]


def test_audit__files_that_do_not_fit(tmp_path: Path) -> None:
    """Embeddings of another width, without vectors, with nan, or of other faces are refused by name."""
    train = write_embeddings(tmp_path / "a.parquet", clustered(TRUE), TRUE)
    narrow = write_embeddings(tmp_path / "b.parquet", clustered(TRUE)[:, :8].copy(), TRUE)
    with pytest.raises(DataError, match="vectors of 8"):
        audited(tmp_path, train, narrow)
    broken = clustered(TRUE)
    broken[7, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        audited(tmp_path, write_embeddings(tmp_path / "c.parquet", broken, TRUE))
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"d\.parquet"):
        audited(tmp_path, str(tmp_path / "d.parquet"))
    fewer = write_embeddings(tmp_path / "e", clustered(TRUE)[:3], None, [face(0, n) for n in range(3)])
    (tmp_path / "e" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"0001\.jpg, which"):
        audited(tmp_path, fewer, read_faces=True)


def test_audit__unaligned(tmp_path: Path) -> None:
    """Faces that are upside down or missing are listed in an aligned set; in an unaligned one only the set is named."""
    jpegs = [face(n, 0) for n in range(24)]
    jpegs[5], jpegs[9] = upside_down(jpegs[5]), no_face()
    vectors = np.eye(24, dtype=np.float32)
    audit = audited(tmp_path, write_embeddings(tmp_path / "a", vectors, None, jpegs), read_faces=True)
    assert rows_of(audit, FACELESS) == [5, 9]
    assert b"<h2>Alignment</h2>" in audit_page(audit)
    assert len(exclusion_list(audit.findings)) == 0, "a person decides"
    moved = [upside_down(face(n, 0)) for n in range(24)]
    audit = audited(tmp_path, write_embeddings(tmp_path / "b", vectors, None, moved), read_faces=True)
    assert rows_of(audit, FACELESS) == []
    assert b"the faces are NOT aligned" in audit_page(audit)


def upside_down(jpeg: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", np.ascontiguousarray(pixels[::-1]))[1].tobytes()


def no_face() -> bytes:
    noise = np.random.default_rng(0).normal(128, 40, (112, 112, 3)).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()
