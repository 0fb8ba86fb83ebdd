from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lafs_ray.data.landmark_cache import CacheKey, plan_parts, read_entries, write_part, write_stamp
from lafs_ray.data.landmark_template import FACE_BOX, grid_template, read_template
from lafs_ray.errors import DataError

POSITIONS = np.array([[38.5, 52.0], [74.0, 51.5], [56.0, 72.0], [42.0, 92.0]], np.float32)


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("count", [1, 25, 49, 196])
def test_grid_template__is_regular_and_inside_the_face(count: int) -> None:
    """Positions are the middles of equal cells of the face's box, row by row."""
    grid = grid_template(count)
    side = round(count**0.5)
    left, top, right, bottom = FACE_BOX
    assert grid.shape == (count, 2)
    assert (grid > [left, top]).all()
    assert (grid < [right, bottom]).all()
    rows = grid.reshape(side, side, 2)
    assert (rows[:, :, 0] == rows[0, :, 0]).all()
    assert (rows[:, 0, 1] == rows[:, :, 1].T).all()
    # Symmetric about the middle of the box: flipped faces have the same positions.
    assert rows[:, :, 0] + rows[:, ::-1, 0] == pytest.approx(left + right, abs=1e-4)  # float32


def test_read_template__from_every_kind_of_file(tmp_path: Path) -> None:
    """Array, table with and without names, Parquet with further columns: the same positions."""
    np.save(tmp_path / "a.npy", POSITIONS.astype(np.float64))
    text = "\n".join(f"{x},{y}" for x, y in POSITIONS.tolist())
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "named.csv").write_text(f"x,y\n{text}\n", encoding="utf-8-sig")
    x, y = POSITIONS.T
    parquet(tmp_path / "a.parquet", name=list("abcd"), Y=y, x=x)
    for name in ("a.npy", "plain.csv", "named.csv", "a.parquet"):
        found = read_template(str(tmp_path / name), 4)
        assert found.dtype == np.float32, name
        assert np.array_equal(found, POSITIONS), name


def test_read_template__mean_of_a_cache(tmp_path: Path) -> None:
    """The folder of a landmark cache stands for the mean of its sound faces."""
    key, parts = CacheKey("w", "f", "rgb", 4, 3), plan_parts(np.array([0, 2, 3]))
    write_part(str(tmp_path), key, parts[0], np.arange(2), np.stack([POSITIONS, POSITIONS + 6]))
    write_part(str(tmp_path), key, parts[1], np.arange(1), np.full((1, 4, 2), np.nan, np.float32))
    entries = read_entries(str(tmp_path), key, parts)
    write_stamp(str(tmp_path), key, [entries[part] for part in parts], {})
    assert np.array_equal(read_template(str(tmp_path), 4), POSITIONS + 3)
    (tmp_path / parts[0].name).write_bytes(b"no part")
    with pytest.raises(DataError, match="a complete landmark cache"):
        read_template(str(tmp_path), 4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npy", None, "no such file"),
        ("other.txt", b"1,2", "neither such a file nor a landmark cache"),
        ("bad.npy", b"\x93NUMPY\x01\x00no", "two columns of numbers"),
        ("bad.parquet", b"PAR1 no PAR1", "two columns of numbers"),
        ("empty.csv", b"", "two columns of numbers"),
        ("three.csv", b"1,2,3\n4,5,6\n", "two columns of numbers"),
        ("words.csv", b"x,y\none,two\n", "two columns of numbers"),
        ("few.csv", b"1,2\n3,40\n", "2 positions"),
        ("nan.csv", b"1,2\n3,nan\n5,60\n7,80\n", r"position 1 at \(3, nan\)"),
        ("far.csv", b"1,2\n3,4\n5,6\n7,800\n", r"position 3 at \(7, 800\)"),
        ("shares.csv", b"0.1,0.2\n0.3,0.4\n0.5,0.6\n0.7,0.8\n", "multiply them by 112"),
    ],
)
def test_read_template__that_cannot_be_used(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    """Another file, another number, shares instead of pixels: named with the file and what to do."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_template(str(tmp_path / name), 4)
    assert name in error.value.subject


def test_read_template__pickled_array(tmp_path: Path) -> None:
    """An array of objects, which could run code, is refused."""
    np.save(tmp_path / "a.npy", np.array([[print, 1]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle=False"):
        read_template(str(tmp_path / "a.npy"), 1)
