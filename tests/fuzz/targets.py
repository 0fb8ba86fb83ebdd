"""What is fuzzed: each target feeds one input to a reader and compares with a slow, plain oracle.

A reader may refuse an input with `DataError`. Any other exception, and any answer that the oracle does not give, is a
finding. Crashes, hangs and memory are the driver's to see.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.packed_set import read_manifest
from lafs_ray.data.recordio import MAGIC, Body, read_index, scan_records, unpack
from lafs_ray.data.verification_pairs import read_pairs
from lafs_ray.errors import DataError
from tests.recordio_parser import parse_records

_WORD = struct.pack("<I", MAGIC)
_MEMORY_DISK = "/dev/shm"
_folder = tempfile.mkdtemp(dir=_MEMORY_DISK if os.path.isdir(_MEMORY_DISK) else None)


def _written(name: str, data: bytes) -> Path:
    path = Path(_folder, f"{os.getpid()}-{name}")
    path.write_bytes(data)
    return path


def oracle_records(data: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """(offset, body) of the records at the beginning of a file, and whether they fill it."""
    records, position = [], 0
    while position < len(data):
        parts, at = [], position
        while True:
            if len(data) - at < 8 or data[at : at + 4] != _WORD:
                return records, False
            (word,) = struct.unpack("<I", data[at + 4 : at + 8])
            part, length = word >> 29, word & 0x1FFFFFFF
            padded = (length + 3) // 4 * 4
            if part not in ({2, 3} if parts else {0, 1}) or at + 8 + padded > len(data):
                return records, False
            parts.append(data[at + 8 : at + 8 + length])
            at += 8 + padded
            if part in (0, 3):
                break
        records.append((position, _WORD.join(parts)))
        position = at
    return records, True


def oracle_payload(body: bytes) -> bytes | None:
    """Return a record's payload; None: the header does not match its size."""
    if len(body) < 24:
        return None
    (flag,) = struct.unpack("<I", body[:4])
    return body[24 + 4 * flag :] if 24 + 4 * flag <= len(body) else None


def frames(data: bytes) -> str:
    """The record reader in memory: the oracle's records, no more and no fewer."""
    expected, whole = oracle_records(data)
    found: list[tuple[int, bytes]] = []
    refused = False
    try:
        for offset, body in parse_records(memoryview(data), 0, "fuzz"):
            found.append((offset, bytes(body)))
            _same_payload(body)
    except DataError:
        refused = True
    assert refused != whole, "sound records refused" if whole else "damage accepted"
    assert found == expected, "other records than the oracle's"
    return "refused" if refused else "read"


def _same_payload(body: Body) -> None:
    expected = oracle_payload(bytes(body))
    try:
        _, payload = unpack(body)
    except DataError:
        assert expected is None, "a sound header refused"
    else:
        assert bytes(payload) == expected, "another payload than the oracle's"


def records(data: bytes) -> str:
    """The record reader on a file: a scan of it, then as a set without index."""
    expected, whole = oracle_records(data)
    path = _written("a.rec", data)
    sound = whole and all(oracle_payload(body) is not None for _, body in expected)
    try:
        scanned = list(scan_records(str(path)))
    except DataError:
        assert not sound, "a sound file refused"
        return "refused"
    assert whole, "a scan skipped damage"
    assert [offset for offset, *_ in scanned] == [offset for offset, _ in expected]
    for (_, _, header, _), (_, body) in zip(scanned, expected, strict=True):
        assert repr(header) == repr(unpack(body)[0])
    return _as_set(path, dict(expected))


def _as_set(path: Path, bodies: dict[int, bytes]) -> str:
    """Open the file as a face set; every image that it returns is in the file."""
    try:
        faces = open_faces(str(path))
        rows = faces.read(np.arange(faces.num_images))
        faces.labels()
    except DataError:
        return "refused as a set"
    for offset, image, error in zip(faces.offsets.tolist(), rows.images, rows.errors, strict=True):
        if not error:
            assert offset in bodies, "an image where no record begins"
            assert image == oracle_payload(bodies[offset]), "another image than the file's"
    return "read"


# Spaces around a number do no harm: mxnet's reader takes them too.
_LINE = re.compile(rb" *(-?0*\d{1,19}) *\t *(-?0*\d{1,19}) *")


def index(data: bytes) -> str:
    """The index reader against lines split by hand."""
    path = _written("d.idx", data)
    try:
        keys, offsets = read_index(str(path))
    except DataError:
        return "refused"
    # The mark that some editors write before the first line does no harm either.
    lines = [line for line in re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf")) if line]
    matches = [_LINE.fullmatch(line) for line in lines]
    assert all(matches), f"accepted {lines[matches.index(None)][:40]!r}" if None in matches else ""
    expected = [(int(match[1]), int(match[2])) for match in matches if match]
    assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == expected
    return "read"


def record_and_index(data: bytes) -> str:
    """A sound record file beside a fuzzed index: no image but those of the file."""
    from tests.fuzz.inputs import SOUND_SET

    path = _written("b.rec", SOUND_SET)
    _written("b.idx", data)
    return _as_set(path, dict(oracle_records(SOUND_SET)[0]))


def indexed_set(data: bytes) -> str:
    """A fuzzed record file beside the index of the sound one."""
    from tests.fuzz.inputs import SOUND_INDEX

    path = _written("c.rec", data)
    _written("c.idx", SOUND_INDEX)
    starts = {i for i in range(0, len(data), 4) if data[i : i + 4] == _WORD}
    # An index entry points to one record, whatever surrounds it.
    bodies = {start: found[0][1] for start in starts if (found := oracle_records_at(data, start))}
    return _as_set(path, bodies)


def oracle_records_at(data: bytes, start: int) -> list[tuple[int, bytes]]:
    """The records from one place on, as many as are sound."""
    return oracle_records(data[start:])[0]


def manifest(data: bytes) -> str:
    """A fuzzed manifest beside a sound packed set: the set's rows and labels, or a refusal."""
    from tests.fuzz.inputs import PACKED

    folder = Path(_folder, f"{os.getpid()}-packed")
    if not folder.exists():
        folder.mkdir()
        for name, content in PACKED.items():
            (folder / name).write_bytes(content)
    (folder / "manifest.json").write_bytes(data)
    try:
        read_manifest(str(folder / "manifest.json"))
        faces = open_faces(str(folder))
        labels, number = faces.labels(), faces.num_identities
    except DataError as error:
        return "refused" if len(str(error)) < 2000 else "refused at length: a finding"
    # A manifest may list no labels, or reorder shards: then labels come from the images.
    assert labels.tolist() == faces.read(np.arange(faces.num_images)).label.tolist()
    assert number is None or 0 <= number <= 1 << 24
    return "read"


def pairs(data: bytes) -> str:
    """The pair reader: plain values or a refusal."""
    path = _written("a.bin", data)
    try:
        found = read_pairs(str(path))
    except DataError as error:
        return "refused" if len(str(error)) < 2000 else "refused at length: a finding"
    assert len(found.images) == 2 * len(found.same) > 0
    assert all(type(image) is bytes for image in found.images)
    assert found.same.dtype == bool
    return "read"


def image(data: bytes) -> str:
    """The JPEG and PNG stage: pixels of a face or a refusal."""
    try:
        pixels = decode_image(data, color_order="rgb")
    except DataError:
        return "refused"
    assert pixels.shape == (112, 112, 3)
    assert pixels.dtype == np.uint8
    return "read"


TARGETS: dict[str, Callable[[bytes], str]] = {
    "frames": frames,
    "records": records,
    "index": index,
    "record_and_index": record_and_index,
    "indexed_set": indexed_set,
    "manifest": manifest,
    "pairs": pairs,
    "image": image,
}
