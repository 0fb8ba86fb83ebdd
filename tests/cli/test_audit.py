"""The command line of an audit: files, counts, errors, and the list that packing takes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lafs_ray.cli.audit import AuditRequest, audit
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.errors import UserError
from tests.audit.sets import clustered, write_embeddings
from tests.audit.test_pictures import face

IDENTITIES = np.repeat(np.arange(10), 6)


def test_audit__page_findings_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set with a copy and a shared identity: three files, counts on the terminal, and a packing without these."""
    jpegs = [face(int(n), index % 6) for index, n in enumerate(IDENTITIES)]
    jpegs[1] = jpegs[0]
    both = clustered(np.concatenate([IDENTITIES, np.full(6, 2)]))
    train = write_embeddings(tmp_path / "train", both[:60], IDENTITIES, jpegs)
    test = write_embeddings(tmp_path / "test", both[60:], None, [face(2, 10 + n) for n in range(6)])
    request = AuditRequest(embeddings=train, against=[test], out=str(tmp_path / "out"))
    audit(request)
    printed = capsys.readouterr().out
    assert "identical picture twice" in printed
    assert "nothing was deleted" in printed
    found = pq.read_table(tmp_path / "out" / "findings.parquet").to_pylist()
    kinds = {row["kind"] for row in found}
    assert kinds == {"identical picture twice", "identity of a test set"}
    assert {row["label"] for row in found if row["kind"] == "identity of a test set"} == {2}
    page = (tmp_path / "out" / "audit.html").read_text()
    for text in ("Audit of ", "Leaks into test sets", "identical picture twice: 1", "data:image/jpeg;base64,"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    with (tmp_path / "out" / "exclude.csv").open() as file:
        excluded = [row["key"] for row in csv.DictReader(file)]
    assert excluded == ["0001.jpg", *(f"{number:04}.jpg" for number in range(12, 18))]
    with pytest.raises(UserError, match="--force"):
        audit(request)
    exclude = str(tmp_path / "out" / "exclude.csv")
    manifest = pack_faces(PackOptions((str(tmp_path / "train"),), str(tmp_path / "packed"), exclude=exclude))
    assert manifest.images == open_faces(str(tmp_path / "packed")).num_images == 60 - 7


def test_audit__embeddings_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without pictures and labels there is a page that says what was not done."""
    train = write_embeddings(tmp_path / "train", clustered(IDENTITIES))
    audit(AuditRequest(embeddings=train, out=str(tmp_path / "out"), no_faces=True))
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "The pictures were not read" in page
    assert "The training set has no labels" in page
    assert pq.read_table(tmp_path / "out" / "findings.parquet").num_rows == 0
    with pytest.raises(UserError, match="--workers"):
        audit(AuditRequest(embeddings=train, out=str(tmp_path / "other"), workers=-1))


def test_audit__what_cannot_be_read(tmp_path: Path) -> None:
    """A wrong path, a folder, a set in place of its embeddings, a missing test set or moved faces: named, no file."""
    train = write_embeddings(tmp_path / "train", clustered(IDENTITIES), IDENTITIES, [face(0, 0)] * 60)
    out = str(tmp_path / "out")
    for path, expected in (("none.parquet", "none.parquet"), ("train", "train"), ("train/0000.jpg", "embed")):
        with pytest.raises(UserError, match=expected):
            audit(AuditRequest(embeddings=str(tmp_path / path), out=out))
    with pytest.raises(UserError, match="missing.parquet"):
        audit(AuditRequest(embeddings=train, against=[str(tmp_path / "missing.parquet")], out=out))
    (tmp_path / "train").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="train"):
        audit(AuditRequest(embeddings=train, out=out))
    assert not list(Path(out).glob("*"))


@pytest.mark.parametrize("labels", [None, [3]])
def test_audit__one_image(tmp_path: Path, labels: list[int] | None) -> None:
    """A set of one image against another of one has a page, without a claim."""
    known = None if labels is None else np.array(labels)
    train, test = (
        write_embeddings(tmp_path / name, np.eye(1, 8, n, dtype=np.float32), known, [face(n, 0)])
        for n, name in enumerate(("train", "test"))
    )
    audit(AuditRequest(embeddings=train, against=[test], out=str(tmp_path / "out")))
    assert pq.read_table(tmp_path / "out" / "findings.parquet").num_rows == 0
    assert (tmp_path / "out" / "audit.html").stat().st_size > 2000
