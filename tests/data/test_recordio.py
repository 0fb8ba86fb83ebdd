from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lafs_ray.data import recordio
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError
from tests.recordio_parser import parse_records

GOLDEN = Path(__file__).parent.parent / "golden"
SHARDS = ["h1_recordio_edge/data.rec", "h3_insightface_rec/train.rec", "h5_plain_rec/data.rec"]
MAGIC = struct.pack("<I", recordio.MAGIC)


def parse(path: Path) -> list[tuple[int, bytes]]:
    buffer = memoryview(path.read_bytes())
    return [(offset, bytes(body)) for offset, body in parse_records(buffer, 0, str(path))]


@pytest.mark.parametrize("name", SHARDS)
def test_parse_records__mxnet_files(name: str) -> None:
    """Offsets, headers and payloads equal those that mxnet 1.9.1 recorded."""
    path = GOLDEN / name
    expected = json.loads((path.parent / "meta.json").read_text())["records"]
    records = parse(path)
    assert len(records) == len(expected)
    for (offset, body), row in zip(records, expected, strict=True):
        header, payload = recordio.unpack(body)
        label = list(header.label) if isinstance(header.label, tuple) else header.label
        assert (header.flag, label, header.id, header.id2) == (row["flag"], row["label"], row["id"], row["id2"])
        assert offset == row.get("offset", offset)
        assert hashlib.sha256(payload).hexdigest() == row["payload_sha256"]
        assert hashlib.sha256(body).hexdigest() == row["record_sha256"]


@pytest.mark.parametrize("name", SHARDS)
def test_record_writer__mxnet_files(name: str, tmp_path: Path) -> None:
    """Unpacking, packing and writing every record gives mxnet's .rec and .idx byte for byte."""
    source = GOLDEN / name
    records, index = parse(source), source.with_suffix(".idx")
    keys = recordio.read_index(str(index))[0].tolist() if index.exists() else range(len(records))
    with recordio.RecordWriter(str(tmp_path / "out.rec")) as writer:
        for key, (offset, body) in zip(keys, records, strict=True):
            header, payload = recordio.unpack(body)
            assert writer.write(key, recordio.pack(header, bytes(payload))) == offset
    assert (tmp_path / "out.rec").read_bytes() == source.read_bytes()
    if index.exists():
        assert (tmp_path / "out.idx").read_bytes() == index.read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=7), st.sampled_from([MAGIC, MAGIC[:3], MAGIC + b"\x00"])), max_size=12))
def test_encode_record__any_bytes(pieces: list[bytes]) -> None:
    """Decoding returns the body; in the file the magic word occurs only before a part."""
    body = b"".join(pieces)
    framed = recordio.encode_record(body)
    decoded, end = recordio.decode_record(memoryview(framed), 0)
    assert bytes(decoded) == body
    assert end == len(framed)
    assert len(framed) % 4 == 0
    words = [framed[i : i + 4] for i in range(0, len(framed), 4)]
    aligned = [body[i : i + 4] for i in range(0, len(body), 4)]
    assert words.count(MAGIC) == 1 + aligned.count(MAGIC)


def test_unpack__flag_beyond_the_record() -> None:
    """A header with more labels than there are bytes is refused with the arithmetic."""
    body = struct.pack("<IfQQ", 1000, 0, 0, 0) + b"1234"
    with pytest.raises(DataError, match=r"flag 1000 \(1000 labels, 4024 bytes\) in 28 bytes"):
        recordio.unpack(body)
    with pytest.raises(DataError, match="7 bytes"):
        recordio.unpack(b"1234567")


def test_parse_records__damage_is_located() -> None:
    """A wrong magic word, a wrong part and truncation name source and offset in the file."""
    whole = recordio.encode_record(recordio.pack(recordio.Header(0, 1.0, 1), b"abcd"))
    broken = bytearray(whole * 2)
    broken[len(whole)] ^= 0xFF
    with pytest.raises(DataError, match=r"a\.rec at offset 1036\n.*0xced723f5") as wrong:
        list(parse_records(memoryview(broken), 1000, "a.rec"))
    assert "0xced7230a" in wrong.value.expected
    broken = bytearray(whole)
    broken[7] = 3 << 5
    with pytest.raises(DataError, match="continuation flag 3"):
        list(parse_records(memoryview(broken), 0, "a.rec"))
    with pytest.raises(DataError, match=r"at offset 36\n.*31 bytes to the end of.*\n.*at least 36"):
        list(parse_records(memoryview((whole * 2)[:-5]), 0, "a.rec"))


@pytest.mark.parametrize("piece_bytes", [40, 100, 5000, 1 << 20])
@pytest.mark.parametrize("name", SHARDS)
def test_scan_records__any_piece_size(name: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan finds the same records, whatever the size of its reads."""
    monkeypatch.setattr(recordio, "_SCAN_BYTES", piece_bytes)
    path = GOLDEN / name
    scanned = list(recordio.scan_records(path.as_uri()))
    records = parse(path)
    assert [offset for offset, *_ in scanned] == [offset for offset, _ in records]
    assert [header for _, _, header, _ in scanned] == [recordio.unpack(b)[0] for _, b in records]
    ends = [offset + size for offset, size, *_ in scanned]
    assert ends == [*(offset for offset, _ in records[1:]), path.stat().st_size]


@pytest.mark.parametrize("piece_bytes", [40, 1 << 20])
def test_scan_records__damage_in_the_middle(piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan stops at the damaged record, whether or not a read begins with it."""
    monkeypatch.setattr(recordio, "_SCAN_BYTES", piece_bytes)
    whole = recordio.encode_record(recordio.pack(recordio.Header(0, 1.0, 1), b"abcd"))
    data = bytearray(whole * 5)
    data[2 * len(whole)] ^= 1
    (tmp_path / "a.rec").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.rec at offset 72"):
        list(recordio.scan_records(str(tmp_path / "a.rec")))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("2 8", "1 column: '2 8'"),
        ("2\tx", "'x' as offset, which is an integer"),
        ("2", "1 column: '2'"),
        ("2\t", "'' as offset, which is an integer"),
    ],
)
def test_read_index__bad_line(line: str, found: str, tmp_path: Path) -> None:
    """A row that is not key, tab, offset is shown with its number."""
    path = tmp_path / "a.idx"
    path.write_text(f"0\t0\n1\t4\n{line}\n3\t12\n")
    with pytest.raises(DataError) as error:
        recordio.read_index(str(path))
    assert error.value.subject == f"{path}, row 3"
    assert error.value.found == found


@pytest.mark.parametrize("line", ["2\t0x100", "0X2\t8"])
def test_read_index__hexadecimal(line: str, tmp_path: Path) -> None:
    """A hexadecimal number, which Arrow would read, is no key and no offset; its row is named."""
    path = tmp_path / "a.idx"
    path.write_text(f"0\t0\n1\t4\n{line}\n3\t12\n")
    with pytest.raises(DataError) as error:
        recordio.read_index(str(path))
    assert (error.value.subject, error.value.found) == (f"{path}, row 3", "a hexadecimal number")


def test_read_index__empty_file(tmp_path: Path) -> None:
    """An empty index is refused, not read as a set without records."""
    (tmp_path / "a.idx").touch()
    with pytest.raises(DataError, match="an empty file"):
        recordio.read_index(str(tmp_path / "a.idx"))


def test_record_writer__exception_leaves_nothing(tmp_path: Path) -> None:
    """A failed write leaves the old pair as it was and no other file."""
    path = tmp_path / "a.rec"
    path.write_bytes(b"old")

    def killed_on_the_way() -> None:
        with recordio.RecordWriter(str(path)) as writer:
            writer.write(0, b"body")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed_on_the_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.rec"]


def test_join__keeps_the_query_of_a_uri() -> None:
    """Parts go before `?region=…`, and replacing the ending too."""
    assert filesystem.join("s3://b/dir?region=x", "a.rec") == "s3://b/dir/a.rec?region=x"
    assert filesystem.join("/dir/", "sub", "a.rec") == "/dir/sub/a.rec"
    assert filesystem.join("/", "a.rec") == "/a.rec"
    assert recordio.index_uri("s3://b/a.rec?region=x") == "s3://b/a.idx?region=x"
