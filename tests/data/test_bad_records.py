from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.data.bad_records import MaxBad, parse_max_bad
from lafs_ray.errors import ConfigError, DataError
from tests.data.packing.sets import packed, write_folder


@pytest.mark.parametrize(
    ("text", "allowed"), [("100", 100), ("0", 0), ("1", 1), ("1%", 10), ("0.01", 10), (" .5% ", 5), ("100%", 1000)]
)
def test_max_bad__number_or_share(text: str, allowed: int) -> None:
    """A whole number counts records; with a point or a percent sign it is a share of all."""
    assert parse_max_bad("--max-bad", text).of(1000) == allowed


@pytest.mark.parametrize("text", ["-1", "1.5", "101%", "", "many", "1e3", "0.5 %"])
def test_max_bad__refused(text: str) -> None:
    """Anything else is refused by the name of the option."""
    with pytest.raises(ConfigError, match="--max-bad"):
        parse_max_bad("--max-bad", text)


def test_pack__share_of_bad_records(tmp_path: Path) -> None:
    """One bad image of eight is within a share of 13 %, and above one of 12 %."""
    write_folder(tmp_path / "photos", {"a": 7})
    (tmp_path / "photos" / "a" / "8.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 8 records read"):
        packed([tmp_path / "photos"], tmp_path / "set", max_bad=MaxBad(None, 0.12))
    assert packed([tmp_path / "photos"], tmp_path / "set", max_bad=MaxBad(None, 0.13)).images == 7
