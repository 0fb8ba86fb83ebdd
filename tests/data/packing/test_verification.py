from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.data.packing.verification import verify_set
from lafs_ray.errors import DataError
from tests.data.packing.sets import packed


@pytest.fixture
def sound(tmp_path: Path, face_set_path: str) -> Path:
    packed([face_set_path], tmp_path / "set", num_shards=5)
    return tmp_path / "set"


def test_verify__sound(sound: Path) -> None:
    """Folder or manifest may be named; the line says what was compared."""
    for path in (sound, sound / "manifest.json"):
        assert verify_set(str(path), apply_in_process) == (
            "verified 120 images, 12 identities, 5 shards: all checksums, indexes and labels match"
        )


def test_verify__names_every_bad_file(sound: Path) -> None:
    """Six kinds of damage at once, each with the file's name and its fault."""
    names = [f"train-0000{n}-of-00005" for n in range(5)]
    payload = bytearray((sound / f"{names[0]}.rec").read_bytes())
    payload[3000] ^= 255
    (sound / f"{names[0]}.rec").write_bytes(payload)
    size = (sound / f"{names[1]}.rec").stat().st_size
    (sound / f"{names[1]}.rec").write_bytes((sound / f"{names[1]}.rec").read_bytes()[:-8])
    (sound / f"{names[2]}.rec").unlink()
    lines = (sound / f"{names[3]}.idx").read_text().splitlines(keepends=True)
    (sound / f"{names[3]}.idx").write_text("".join(lines[:-1]))
    label = bytearray((sound / f"{names[4]}.rec").read_bytes())
    label[12:16] = b"\0\0\xc8\x42"  # float32: 100
    (sound / f"{names[4]}.rec").write_bytes(label)
    (sound / "identities.csv").write_text("")
    (sound / "more.rec").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        verify_set(str(sound), apply_in_process)
    found = raised.value.found
    assert found.startswith("7 bad files:")
    for line in (
        f"{names[0]}.rec: checksum ",
        f"{names[1]}.rec: {size - 8} bytes, expected {size}",
        f"{names[2]}.rec: missing",
        f"{names[3]}.rec: its .idx does not match",
        f"{names[4]}.rec: key 0: label 100, expected ",
        "identities.csv: checksum ",
        "more.rec: not in the manifest",
    ):
        assert line in found


def test_verify__no_manifest(tmp_path: Path, sound: Path) -> None:
    """A folder without manifest, or with another's, is refused."""
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify_set(str(tmp_path), apply_in_process)
    (sound / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="another format or version"):
        verify_set(str(sound), apply_in_process)
    (sound / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        verify_set(str(sound), apply_in_process)
