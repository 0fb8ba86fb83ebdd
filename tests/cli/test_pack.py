"""Packing on Ray writes the same bytes as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.cli.pack import num_bytes
from lafs_ray.engine.ray_tasks import apply_on_ray
from lafs_ray.errors import ConfigError, find_user_error
from tests.data.packing.sets import content, packed
from tests.training.faces import NO_IMAGE, write_face_set


@pytest.mark.ray
def test_pack__two_workers_write_the_bytes_of_one(tmp_path: Path, face_set_path: str, local_ray: None) -> None:
    """Eight ranges and four shards in any order give the same files."""
    packed([face_set_path], tmp_path / "one", num_shards=4)
    packed([face_set_path], tmp_path / "two", apply=apply_on_ray(2), num_shards=4, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.ray
def test_pack__error_of_a_worker_reaches_the_user(tmp_path: Path, local_ray: None) -> None:
    """One bad record too many is reported by Ray with the original message."""
    write_face_set(tmp_path / "bad.rec", replaced={7: NO_IMAGE})
    with pytest.raises(Exception, match="bad records") as raised:
        packed([tmp_path / "bad.rec"], tmp_path / "set", apply=apply_on_ray(2), max_bad=0, workers=2)
    error = find_user_error(raised.value)
    assert error is not None
    assert "bad.rec, key 8" in error.found
    assert not (tmp_path / "set" / "pack.lock").exists()


@pytest.mark.ray
def test_on_ray__more_workers_than_the_cluster_has(local_ray: None) -> None:
    """The error names the option; nothing waits forever."""
    with pytest.raises(ConfigError, match=r"at least 9: --workers = 9"):
        list(apply_on_ray(9)(lambda shared, item: item, None, [1]))


@pytest.mark.parametrize(
    ("text", "expected"), [("512M", 512 << 20), ("1.5G", 3 << 29), ("700", 700), ("2 gib", 2 << 30)]
)
def test_num_bytes(text: str, expected: int) -> None:
    """Sizes with and without a unit."""
    assert num_bytes("--memory", text) == expected


def test_num_bytes__invalid() -> None:
    """The error has the option and its value."""
    with pytest.raises(ConfigError, match="'much'"):
        num_bytes("--memory", "much")
