"""WebDataset and Parquet shards for the tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def tar_bytes(members: Iterable[tuple[str, bytes | str]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of files (name, content) in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, form))
    return path


def samples(images: Sequence[bytes], labels: Sequence[object] | None = None, first: int = 0) -> list[tuple[str, Any]]:
    """Return the members of samples 000000.jpg, 000000.cls, …"""
    members: list[tuple[str, Any]] = []
    for number, image in enumerate(images):
        members.append((f"{first + number:06}.jpg", image))
        if labels is not None:
            members.append((f"{first + number:06}.cls", str(labels[number])))
    return members


def write_parquet(path: Path, rows_per_group: int = 1000, /, **columns: Any) -> Path:
    """Write columns; `image` as Hugging Face's struct unless it is an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(columns.get("image"), list):
        images = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in columns["image"]]
        columns["image"] = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path
