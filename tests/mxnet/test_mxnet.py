"""Real mxnet 1.9.1 reads what we write, and we read what it writes, byte for byte."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from lafs_ray.data.recordio import Header, RecordWriter, pack, read_index, scan_records, unpack
from tests.mxnet.cases import records
from tests.recordio_parser import parse_records

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("LAFS_MXNET_PYTHON", ROOT / ".venv-mxnet/bin/python"))
SCRIPT = Path(__file__).parent / "by_mxnet.py"
FILES = int(os.environ.get("LAFS_MXNET_FILES", "60"))

pytestmark = [
    pytest.mark.mxnet,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: run `make mxnet-environment` (see docs/data.md)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`FILES` files written by mxnet, and the same records written by this package."""
    folder = tmp_path_factory.mktemp("mxnet")
    assert by_mxnet("write", folder) == []
    for seed in range(FILES):
        with RecordWriter(str(folder / f"ours-{seed}.rec")) as writer:
            for key, label, id_, id2, payload in records(seed):
                flag = len(label) if isinstance(label, tuple) else 0
                writer.write(key, pack(Header(flag, label, id_, id2), payload))
    return folder


def by_mxnet(action: str, folder: Path) -> list[str]:
    """Run the script in mxnet's environment; return the lines it prints (differences)."""
    command = [str(PYTHON), str(SCRIPT), action, str(folder), "0", str(FILES)]
    # The environment's own packages and no others.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    *lines, last = result.stdout.splitlines()
    assert last == "done 1.9.1"
    return lines


def test_files__are_the_same_byte_for_byte(folder: Path) -> None:
    """Both writers produce the same .rec and .idx for all random records."""
    sizes = []
    for seed in range(FILES):
        for ending in ("rec", "idx"):
            theirs = (folder / f"mxnet-{seed}.{ending}").read_bytes()
            assert (folder / f"ours-{seed}.{ending}").read_bytes() == theirs, f"{seed}.{ending}"
            sizes.append(len(theirs))
    assert max(sizes) > 4 << 20
    assert min(sizes) == 0


def test_our_files__are_read_by_mxnet(folder: Path) -> None:
    """In order and by index mxnet gets the header and payload of each record, and no more."""
    assert by_mxnet("read", folder) == []


def test_mxnet_files__are_read_by_us(folder: Path) -> None:
    """In memory, in a scan and by index we get the header and payload of each record."""
    for seed in range(FILES):
        path, expected = folder / f"mxnet-{seed}.rec", records(seed)
        found = list(parse_records(memoryview(path.read_bytes()), 0, str(path)))
        assert len(found) == len(expected)
        for (_, body), record in zip(found, expected, strict=True):
            header, payload = unpack(body)
            assert bits(header.label) == bits(record.label), seed
            assert (header.id, header.id2, bytes(payload)) == record[2:], seed
        assert [offset for offset, *_ in scan_records(str(path))] == [o for o, _ in found]
        if expected:
            keys, offsets = read_index(str(path.with_suffix(".idx")))
            assert keys.tolist() == [record.key for record in expected]
            assert offsets.tolist() == [offset for offset, _ in found]


def bits(label: float | tuple[float, ...]) -> bytes:
    """Encode as in the file, where 0.0 and -0.0 differ."""
    labels = label if isinstance(label, tuple) else (label,)
    return struct.pack(f"<{len(labels)}f", *labels)
