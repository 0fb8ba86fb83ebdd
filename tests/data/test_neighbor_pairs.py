"""Pairs of neighbors as a file, and as what a run draws from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lafs_ray.data.neighbor_pairs import NeighborPairs, read_neighbors, write_neighbors
from lafs_ray.errors import DataError

FIRST = np.array([7, 2, 2, 9, 2, 5])
SECOND = np.array([2, 7, 9, 2, 5, 2])


def written(folder: Path) -> Path:
    path = folder / "neighbors.safetensors"
    write_neighbors(str(path), NeighborPairs.from_pairs(FIRST, SECOND), "f" * 32, 10, {"source": "runs/any"})
    return path


def test_from_pairs__lists_each_faces_neighbors() -> None:
    """In any order of the pairs; faces and their neighbors ascend."""
    for order in (np.arange(6), np.array([5, 3, 1, 0, 2, 4])):
        pairs = NeighborPairs.from_pairs(FIRST[order], SECOND[order])
        assert pairs.faces.tolist() == [2, 5, 7, 9]
        assert pairs.starts.tolist() == [0, 3, 4, 5, 6]
        assert pairs.others.tolist() == [5, 7, 9, 2, 2, 2]
        assert pairs.is_table_of(10)
        assert not pairs.is_table_of(9)


def test_draw__each_face_equally_often_and_each_of_its_neighbors() -> None:
    """However many neighbors a face has; only pairs of the table."""
    pairs = NeighborPairs.from_pairs(FIRST, SECOND)
    drawn = pairs.draw(np.random.default_rng(0), 4000)
    assert set(map(tuple, drawn.tolist())) == set(zip(FIRST.tolist(), SECOND.tolist(), strict=True))
    counts = np.unique(drawn[:, 0], return_counts=True)[1]
    # 1,000 of each, with a standard deviation of 27.
    assert (abs(counts - 1000) < 140).all()
    of_two = np.unique(drawn[drawn[:, 0] == 2, 1], return_counts=True)[1]
    assert (abs(of_two - 333) < 90).all()
    again = pairs.draw(np.random.default_rng(0), 4000)
    assert np.array_equal(drawn, again)


def test_file__is_read_as_it_was_written(tmp_path: Path) -> None:
    """Arrays and hash."""
    path = written(tmp_path)
    found, wanted = read_neighbors(str(path), "f" * 32, 10), NeighborPairs.from_pairs(FIRST, SECOND)
    for name in ("faces", "starts", "others"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    assert found.hash == wanted.hash
    other = NeighborPairs.from_pairs(FIRST[:2], SECOND[:2])
    assert other.hash != wanted.hash


def test_file__of_another_set(tmp_path: Path) -> None:
    """The message names both and the command."""
    path = str(written(tmp_path))
    for fingerprint, images in (("e" * 32, 10), ("f" * 32, 11)):
        with pytest.raises(DataError, match="another set of 10 images") as caught:
            read_neighbors(path, fingerprint, images)
        assert "lafs mine-neighbors" in caught.value.fix


def test_file__missing_or_no_file_of_neighbors(tmp_path: Path) -> None:
    """A message, no traceback."""
    with pytest.raises(DataError, match="no such file") as caught:
        read_neighbors(str(tmp_path / "none.safetensors"), "f" * 32, 10)
    assert "lafs mine-neighbors" in caught.value.fix
    other = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3)}, other)
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors\n" * 10)
    (tmp_path / "empty.safetensors").touch()
    for path in (other, text, tmp_path / "empty.safetensors"):
        with pytest.raises(DataError, match="no file of neighbors"):
            read_neighbors(str(path), "f" * 32, 10)


def test_file__damaged_anywhere(tmp_path: Path) -> None:
    """Truncated, or with any one bit changed: never other pairs."""
    path = written(tmp_path)
    data = path.read_bytes()
    for length in (0, 4, 20, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            read_neighbors(str(path), "f" * 32, 10)
    wanted = read_neighbors(str(written(tmp_path)), "f" * 32, 10).hash
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            found = read_neighbors(str(path), "f" * 32, 10)
        except DataError:
            continue
        # A letter of the details for readers.
        assert found.hash == wanted, place


@pytest.mark.parametrize(
    ("faces", "starts", "others"),
    [
        ([1, 3], [0, 1], [3, 1]),
        ([1, 3], [0, 1, 3], [3, 1]),
        ([3, 1], [0, 1, 2], [1, 3]),
        ([1, 3], [0, 0, 2], [1, 2]),
        ([1, 3], [0, 1, 2], [1, 3]),
        ([1, 3], [0, 1, 2], [3, 10]),
        ([-1, 3], [0, 1, 2], [3, 1]),
        ([], [0], []),
    ],
)
def test_table__that_cannot_be(tmp_path: Path, faces: list[int], starts: list[int], others: list[int]) -> None:
    """Wrong lengths, an order that does not ascend, a face without or with itself as a neighbor, one that is not; also
    in a file whose hash is right."""

    def array(numbers: list[int]) -> NDArray[np.int64]:
        return np.array(numbers, np.int64)

    table, path = NeighborPairs(array(faces), array(starts), array(others)), str(tmp_path / "neighbors.safetensors")
    assert not table.is_table_of(10)
    write_neighbors(path, table, "f" * 32, 10, {})
    with pytest.raises(DataError, match="numbers that are not those that were written"):
        read_neighbors(path, "f" * 32, 10)
