"""Packing without the records that a list names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.errors import DataError
from tests.training.faces import write_face_set


def images_of(path: Path | str) -> list[bytes]:
    faces = open_faces(str(path))
    return sorted(faces.read(np.arange(faces.num_images)).images)


def test_exclude__records_of_a_set(tmp_path: Path) -> None:
    """All other images stay, byte for byte; another list is another request."""
    write_face_set(tmp_path / "a.rec", 5, 4)
    everything = images_of(tmp_path / "a.rec")
    kept = open_faces(str(tmp_path / "a.rec")).read(np.array([n for n in range(20) if n not in (0, 7, 19)])).images
    rows = {"shard": [str(tmp_path / "a.rec")] * 3, "key": ["1", "8", "20"], "reason": ["x", "y", "z"]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    options = PackOptions((str(tmp_path / "a.rec"),), str(tmp_path / "out"), exclude=str(tmp_path / "list.parquet"))
    assert pack_faces(options).images == 17
    assert images_of(tmp_path / "out") == sorted(kept)
    assert len(everything) == 20
    with pytest.raises(DataError, match="another"):
        pack_faces(PackOptions((str(tmp_path / "a.rec"),), str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("content", "found"),
    [("shard,key\n,77\n", "77, which no source has; such rows: 1 of 1"), ("key\n1\n", "shard"), ("", "Empty CSV file")],
)
def test_exclude__list_that_does_not_fit(tmp_path: Path, content: str, found: str) -> None:
    """A record that no source has, and a list without the columns, are refused before anything is packed."""
    write_face_set(tmp_path / "a.rec", 2, 2)
    (tmp_path / "list.csv").write_text(content)
    options = PackOptions((str(tmp_path / "a.rec"),), str(tmp_path / "out"), exclude=str(tmp_path / "list.csv"))
    with pytest.raises(DataError) as raised:
        pack_faces(options)
    assert found in raised.value.found
    assert not (tmp_path / "out").exists()


def test_exclude__everything(tmp_path: Path) -> None:
    """A list that leaves nothing of a source is refused."""
    write_face_set(tmp_path / "a.rec", 1, 2)
    path = tmp_path / "a.rec"
    (tmp_path / "list.csv").write_text(f"shard,key\n{path},1\n{path},2\n")
    with pytest.raises(DataError, match="all records of"):
        pack_faces(PackOptions((str(path),), str(tmp_path / "out"), exclude=str(tmp_path / "list.csv")))
