"""Nearest neighbors, exact in blocks and by the inverted file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lafs_ray.audit import nearest
from lafs_ray.audit.embeddings import VectorFile
from lafs_ray.audit.nearest import Gallery, Neighbors
from lafs_ray.data.packing.session import apply_in_process
from tests.audit.sets import clustered


def vector_file(path: Path, rows: NDArray[np.float32]) -> VectorFile:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    unit.astype(np.float32).tofile(path)
    return VectorFile(str(path), *rows.shape)


def naive(gallery: VectorFile, queries: VectorFile, k: int) -> NDArray[np.int64]:
    scores = queries.open() @ gallery.open().T
    if gallery.path == queries.path:
        np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def found_in(gallery: VectorFile, queries: VectorFile, folder: Path, k: int) -> Neighbors:
    return Gallery(gallery, str(folder)).search(queries, k, apply_in_process)


@pytest.mark.parametrize("at_once", [7, 1 << 15])
def test_search__exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """In blocks of any size the result is that of all scores at once; a row is no neighbor of itself."""
    monkeypatch.setattr(nearest, "_GALLERY_AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    gallery = vector_file(tmp_path / "a", generator.standard_normal((50, 8)).astype(np.float32))
    queries = vector_file(tmp_path / "b", generator.standard_normal((20, 8)).astype(np.float32))
    for one in (queries, gallery):
        found = found_in(gallery, one, tmp_path, 4)
        np.testing.assert_array_equal(found.rows, naive(gallery, one, 4))
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_search__fewer_rows_than_neighbors(tmp_path: Path) -> None:
    """Three rows have two neighbors each."""
    gallery = vector_file(tmp_path / "a", np.eye(3, dtype=np.float32))
    assert found_in(gallery, gallery, tmp_path, 10).rows.shape == (3, 2)


def test_search__approximate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverted file finds the neighbors of clustered vectors, without the row itself, to float16's error."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 100)
    gallery = vector_file(tmp_path / "a", clustered(np.repeat(np.arange(150), 8)))
    found = found_in(gallery, gallery, tmp_path, 5)
    expected = naive(gallery, gallery, 5)
    rows = np.arange(len(found.rows))
    assert not (found.rows == rows[:, None]).any()
    shared = [len(set(one) & set(other)) for one, other in zip(found.rows.tolist(), expected.tolist(), strict=True)]
    # 16 of 103 lists are searched; a cluster lies in one or two of them.
    assert np.mean(shared) > 4.8
    scores = np.einsum("nd,nkd->nk", gallery.open(), gallery.open()[found.rows])
    # float16 has 11 bits.
    np.testing.assert_allclose(found.scores, scores, atol=2e-3)


def test_search__without_faiss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the extra the search stays exact, and the log says what that costs."""
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 100)
    monkeypatch.setattr(nearest, "has_faiss", lambda: False)
    gallery = vector_file(tmp_path / "a", clustered(np.repeat(np.arange(15), 8)))
    np.testing.assert_array_equal(found_in(gallery, gallery, tmp_path, 3).rows, naive(gallery, gallery, 3))
    assert "faiss-cpu is missing" in caplog.text
