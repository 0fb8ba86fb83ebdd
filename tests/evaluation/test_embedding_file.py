"""Faces become rows of a Parquet file in their order; what is damaged is named and left out."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import ImageSource, RecordImages, open_images
from lafs_ray.errors import DataError
from lafs_ray.evaluation import embedding_file
from lafs_ray.evaluation.embedding_file import Decoding, Outcome, with_flip, write_embeddings
from tests.training.faces import NO_IMAGE, break_frame, face_jpegs, pixels_of, write_face_set


def corner(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An embedding that can be checked by hand: three pixels of the top row, RGB."""
    assert images.shape[1:] == (112, 112, 3)
    return images[:, 0, :3].reshape(len(images), 9).astype(np.float32)


class Warnings(logging.Handler):
    """The messages of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def written(source: ImageSource, path: Path, embed: Any = corner, **decoding: Any) -> tuple[Outcome, list[str]]:
    handler = Warnings()
    embedding_file.logger.addHandler(handler)
    try:
        outcome = write_embeddings(str(path), source, embed, Decoding(**decoding), {"step": "7"})
    finally:
        embedding_file.logger.removeHandler(handler)
    return outcome, handler.messages


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and row groups from few faces."""
    monkeypatch.setattr(embedding_file, "CHUNK", 8)
    monkeypatch.setattr(embedding_file, "_ROW_GROUP", 16)


@pytest.mark.usefixtures("small_groups")
def test_write_embeddings__of_records(tmp_path: Path, face_set_path: str) -> None:
    """A row for each record in file order: file, key, label, vector; groups stay small."""
    outcome, warnings = written(open_images(face_set_path), tmp_path / "a.parquet")
    assert (outcome.num_rows, outcome.left_out, warnings) == (120, [], [])
    file = pq.ParquetFile(tmp_path / "a.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [16] * 7 + [8]
    table = file.read()
    assert table.column_names == ["shard", "key", "label", "vector"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[9]"
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [*range(1, 121)]
    assert [row["label"] for row in rows] == [number // 10 for number in range(120)]
    assert {row["shard"] for row in rows} == {face_set_path}
    pixels = np.stack([pixels_of(jpeg) for jpeg in face_jpegs(120)])
    assert np.array_equal([row["vector"] for row in rows], corner(pixels))
    metadata = file.metadata.metadata
    assert (metadata[b"step"], metadata[b"num_rows"], metadata[b"left_out"]) == (b"7", b"120", b"0")


def folder_of_images(folder: Path) -> Path:
    """Folders of two identities, an image beside them, and files that are not images."""
    jpegs = face_jpegs(4)
    for name, jpeg in zip(("b/2.jpg", "b/10.JPEG", "a/1.jpg", "z.jpg"), jpegs, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg)
    (folder / "notes.txt").write_text("none")
    return folder


def test_write_embeddings__of_image_files(tmp_path: Path) -> None:
    """Keys are paths below the folder; there is no shard and no label."""
    source = open_images(str(folder_of_images(tmp_path / "faces")))
    written(source, tmp_path / "a.parquet")
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["a/1.jpg", "b/10.JPEG", "b/2.jpg", "z.jpg"]
    assert [row["label"] for row in rows] == [None] * 4
    pixels = [pixels_of(face_jpegs(4)[number]) for number in (2, 1, 0, 3)]
    assert np.array_equal([row["vector"] for row in rows], corner(np.stack(pixels)))


def test_with_flip__sums_both(tmp_path: Path) -> None:
    """The flip test adds the embedding of the mirror image."""
    images = np.random.default_rng(0).integers(256, size=(2, 112, 112, 3), dtype=np.uint8)
    found = with_flip(corner)(images)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    assert np.array_equal(found, corner(images) + corner(mirrored))


def test_write_embeddings__color_order(tmp_path: Path, face_set_path: str) -> None:
    """Files that decode to BGR reach the network as RGB."""
    for order in ("rgb", "bgr"):
        written(open_images(face_set_path), tmp_path / order, color_order=order)
    rgb, bgr = (
        np.array(pq.read_table(tmp_path / order)["vector"].to_pylist()).reshape(120, 3, 3) for order in ("rgb", "bgr")
    )
    assert np.array_equal(rgb, bgr[..., ::-1])


@pytest.mark.usefixtures("small_groups")
def test_write_embeddings__damaged_records(tmp_path: Path) -> None:
    """A damaged frame and a damaged image are named by key and left out; the others stay."""
    path = tmp_path / "train.rec"
    write_face_set(path, 2, 10, replaced={3: NO_IMAGE})
    break_frame(path, 15)
    outcome, warnings = written(open_images(str(path)), tmp_path / "a.parquet", max_bad_records=2)
    assert outcome.num_rows == 18
    assert len(warnings) == 2
    assert warnings[0].startswith(f"left out: {path}, key 4: found ")
    assert warnings[1].startswith(f"left out: {path}, key 16")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read()["key"].to_pylist() == [n for n in range(1, 21) if n not in (4, 16)]
    assert file.metadata.metadata[b"left_out"] == b"2"
    with pytest.raises(DataError, match="damaged faces") as caught:
        written(open_images(str(path)), tmp_path / "b.parquet", max_bad_records=1)
    assert "2 so far:" in caught.value.found
    assert caught.value.expected == "at most 1"
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "train.idx", "train.rec"]


@pytest.mark.parametrize(("size", "shown"), [((96, 96), "96x96"), ((112, 96), "112x96")])
def test_write_embeddings__images_of_another_size(tmp_path: Path, size: tuple[int, int], shown: str) -> None:
    """Another size is named with its file; where all are left out there is no file."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "x.jpg").write_bytes(face_jpegs(1, size=size)[0])
    with pytest.raises(DataError, match="--resize") as caught:
        written(open_images(str(tmp_path / "faces")), tmp_path / "a.parquet")
    assert f"x.jpg: found {shown}; expected a JPEG or PNG of 112x112" in caught.value.found
    assert caught.value.expected == "at least one face"
    assert os.listdir(tmp_path) == ["faces"]


@pytest.mark.parametrize("side", [56, 112, 224])
def test_write_embeddings__resized(tmp_path: Path, side: int) -> None:
    """Squares of any size are scaled on demand; one of the right size stays as it is."""
    (tmp_path / "faces").mkdir()
    gray = np.full((side, side, 3), (10, 100, 200), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "faces" / "x.png"), gray[..., ::-1])
    cv2.imwrite(str(tmp_path / "faces" / "y.png"), gray[:50])
    _, warnings = written(open_images(str(tmp_path / "faces")), tmp_path / "a.parquet", resize=True)
    assert pq.read_table(tmp_path / "a.parquet")["vector"].to_pylist() == [[10, 100, 200] * 3]
    assert "expected a square" in warnings[0]


def test_write_embeddings__diverged_network(tmp_path: Path, face_set_path: str) -> None:
    """NaN never reaches the file."""

    def nan(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors = corner(images)
        vectors[2] = np.nan
        return vectors

    with pytest.raises(DataError, match=r"embedding of .*train.rec, key 3"):
        written(open_images(face_set_path), tmp_path / "a.parquet", nan)
    assert list(tmp_path.iterdir()) == []


def test_write_embeddings__interrupted(tmp_path: Path, face_set_path: str) -> None:
    """Ctrl-C in the middle leaves the old file as it was and nothing beside it."""
    written(open_images(face_set_path), tmp_path / "a.parquet")
    before = (tmp_path / "a.parquet").read_bytes()

    def interrupted(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(open_images(face_set_path), tmp_path / "a.parquet", interrupted)
    assert (tmp_path / "a.parquet").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_open_images__nothing_to_embed(tmp_path: Path) -> None:
    """A folder without images, an empty one and a missing one give different messages."""
    with pytest.raises(DataError, match="an empty folder"):
        open_images(str(tmp_path))
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="1 file, none of them an image"):
        open_images(str(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        open_images(str(tmp_path / "nowhere"))


def test_open_images__folder_with_records(tmp_path: Path) -> None:
    """Where a folder holds .rec files, these are the set."""
    write_face_set(tmp_path / "train.rec", 2, 4)
    assert isinstance(open_images(str(tmp_path)), RecordImages)


def test_image_files__gone_meanwhile(tmp_path: Path) -> None:
    """A file that vanishes while others are embedded counts as a damaged one."""
    source = open_images(str(folder_of_images(tmp_path / "faces")))
    (tmp_path / "faces" / "b" / "2.jpg").unlink()
    outcome, warnings = written(source, tmp_path / "a.parquet")
    assert outcome.num_rows == 3
    assert warnings == [f"left out: {tmp_path}/faces/b/2.jpg: found no such file"]
