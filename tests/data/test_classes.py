"""Classes are the identities that occur, whatever a header or the highest label claims."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.classes import LabeledFaces, number_classes
from lafs_ray.data.face_set import open_faces
from lafs_ray.errors import DataError
from tests.data.packing.sets import images_by_label, packed, write_folder, write_plain
from tests.data.record_sets import all_rows, write_insightface
from tests.training.faces import face_jpegs


def numbered(path: Path) -> LabeledFaces:
    return number_classes(str(path), open_faces(str(path)))


def test_number_classes__catalogue_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels 1,000,000 to 1,000,011 of twelve identities are twelve classes, aloud; so are labels with gaps."""
    for labels in (range(1_000_000, 1_000_012), [0, 5, 7], [3, 1]):
        write_plain(tmp_path / "a.rec", [*labels, *labels], [b"image"] * 2 * len(labels))
        with caplog.at_level(logging.WARNING):
            found = numbered(tmp_path / "a.rec")
        expected = np.searchsorted(sorted(labels), [*labels, *labels]).tolist()
        assert found.num_classes == len(labels)
        assert (
            found.labels.tolist() == found.faces.labels().tolist() == all_rows(found.faces).label.tolist() == expected
        )
        assert f"{len(labels)} labels from {min(labels)} to {max(labels)} are renumbered" in caplog.text


def test_number_classes__without_gaps_stay(tmp_path: Path) -> None:
    """Labels from 0 are the classes; a record without a label keeps -1."""
    write_plain(tmp_path / "a.rec", [1, 0, -1, 2], [b"image"] * 4)
    found = numbered(tmp_path / "a.rec")
    assert (found.num_classes, found.labels.tolist(), found.faces.label_numbers) == (3, [1, 0, -1, 2], ())


def test_number_classes__identity_record_for_each_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two identities in four runs are two classes, not the four that identity records list."""
    ranges = [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]
    write_insightface(tmp_path / "a.rec", [0.0, 1.0, 0.0, 1.0], ranges)
    with caplog.at_level(logging.WARNING):
        found = numbered(tmp_path / "a.rec")
    assert (found.num_classes, found.labels.tolist()) == (2, [0, 1, 0, 1])
    assert "lists 4 identities, and its images have 2 labels, which count" in caplog.text


def test_number_classes__refused(tmp_path: Path) -> None:
    """Labels that float32 rounds may be of two identities; labels of two packed sets are of different ones."""
    write_plain(tmp_path / "a.rec", [0, 1 << 24], [b"image"] * 2)
    with pytest.raises(DataError, match="labels up to 16777216"):
        numbered(tmp_path / "a.rec")
    for name in ("one", "two"):
        write_folder(tmp_path / name, {"a": 1, "b": 1})
        packed([tmp_path / name], tmp_path / "sets" / name)
    with pytest.raises(DataError, match="2 packed sets"):
        numbered(tmp_path / "sets" / "*" / "*.rec")


def test_pack__sparse_labels_of_records(tmp_path: Path) -> None:
    """Sparse labels and those of an insightface file with too many identities follow each other without gaps."""
    images = face_jpegs(6)
    write_plain(tmp_path / "a.rec", [1_000_003, 1_000_001, 1_000_003], images[:3])
    write_plain(tmp_path / "b.rec", [5, 7, -1], images[3:])
    manifest = packed([tmp_path / "a.rec", tmp_path / "b.rec"], tmp_path / "set")
    assert (manifest.identities, manifest.unlabeled) == (4, 1)
    assert [(source["first_label"], source["identities"]) for source in manifest.sources] == [(0, 2), (2, 2)]
    expected = {-1: [5], 0: [1], 1: [0, 2], 2: [3], 3: [4]}
    of_label = {label: sorted(images[number] for number in numbers) for label, numbers in expected.items()}
    assert images_by_label(tmp_path / "set") == of_label
    names = [line.split(",")[2].strip('"') for line in (tmp_path / "set" / "identities.csv").read_text().split()[1:]]
    assert names == ["1000001", "1000003", "5", "7"]
    assert numbered(tmp_path / "set").num_classes == 4


def test_pack__label_that_is_rounded(tmp_path: Path) -> None:
    """A label beyond float32's integers is a bad record with the reason."""
    write_plain(tmp_path / "a.rec", [0, 1 << 25], face_jpegs(2))
    manifest = packed([tmp_path / "a.rec"], tmp_path / "set")
    assert (manifest.images, manifest.left_out["images"]) == (1, 1)
    assert "the label 33554432" in manifest.left_out["first"][0]
