from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.data.packing.integrity import verify_set
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.errors import DataError
from tests.data.packing.sets import packed


@pytest.fixture
def intact(tmp_path: Path, face_set_path: str) -> Path:
    packed([face_set_path], tmp_path / "set", num_shards=5)
    return tmp_path / "set"


def test_verify__intact(intact: Path) -> None:
    """The path is a folder or its manifest; the result states what was compared."""
    for path in (intact, intact / "manifest.json"):
        assert verify_set(str(path), apply_in_process) == (
            "verified 120 images, 12 identities, 5 shards: all checksums, indexes and labels match"
        )


def test_verify__lists_every_bad_file(intact: Path) -> None:
    """Seven kinds of damage at once, each with the name of the file and its error."""
    names = [f"train-0000{n}-of-00005" for n in range(5)]
    payload = bytearray((intact / f"{names[0]}.rec").read_bytes())
    payload[3000] ^= 255
    (intact / f"{names[0]}.rec").write_bytes(payload)
    size = (intact / f"{names[1]}.rec").stat().st_size
    (intact / f"{names[1]}.rec").write_bytes((intact / f"{names[1]}.rec").read_bytes()[:-8])
    (intact / f"{names[2]}.rec").unlink()
    lines = (intact / f"{names[3]}.idx").read_text().splitlines(keepends=True)
    (intact / f"{names[3]}.idx").write_text("".join(lines[:-1]))
    label = bytearray((intact / f"{names[4]}.rec").read_bytes())
    label[12:16] = b"\0\0\xc8\x42"  # float32: 100
    (intact / f"{names[4]}.rec").write_bytes(label)
    (intact / "identities.csv").write_text("")
    (intact / "more.rec").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        verify_set(str(intact), apply_in_process)
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


def test_verify__no_manifest(tmp_path: Path, intact: Path) -> None:
    """A folder without a manifest, or with one of another format, is an error."""
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify_set(str(tmp_path), apply_in_process)
    (intact / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="another format or version"):
        verify_set(str(intact), apply_in_process)
    (intact / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        verify_set(str(intact), apply_in_process)


def change(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("checksums",), 5),
        (("checksums",), {"identities.csv": "0" * 32}),
        (("checksums", "../../dev/zero"), "0" * 32),
        (("checksums", "/etc/shadow"), "0" * 32),
        (("checksums", ".."), "0" * 32),
        (("checksums", "labels.npy"), "0"),
        (("checksums", "labels.npy"), 7),
        (("shards", 0, "name"), "../../etc/passwd"),
        (("shards", 0, "name"), "a\nb.rec"),
        (("shards", 0, "blake2b"), "\x1b[31m"),
        (("shards", 0), []),
        (("images",), 120.0),
        (("seed",), "0"),
    ],
)
def test_verify__manifest_of_other_types_or_places(intact: Path, path: tuple[Any, ...], value: Any) -> None:
    """Names that leave the folder, and values of other types, are refused before any file is read."""
    uri = intact / "manifest.json"
    content = json.loads(uri.read_text())
    change(content, path, value)
    uri.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json\n.*(checksums|shards|images|seed)") as raised:
        verify_set(str(intact), apply_in_process)
    assert "manifest of version 1" in raised.value.expected
