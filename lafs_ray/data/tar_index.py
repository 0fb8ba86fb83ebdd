"""WebDataset's samples in a tar: neighboring members of one name up to its first dot.

A sample is an image (`0001.jpg`) and maybe its label: `0001.cls`, an integer or a name, or `0001.json`, an object with
one of `LABEL_KEYS`. The key of an image is the number of its sample among those with an image, in file order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from lafs_ray.data.io import reading
from lafs_ray.data.io.json_text import parse_json
from lafs_ray.data.io.reading import record_file_state
from lafs_ray.data.io.tar_headers import Member, TarReader
from lafs_ray.data.io.walk import IMAGE_ENDINGS, is_foreign, printable
from lafs_ray.data.set_labels import LABEL_KEYS, FoundLabels
from lafs_ray.data.shard import Shard
from lafs_ray.data.shard_layout import TarMembers
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

_MOST_LABEL_BYTES = 1 << 20
_IMAGES = frozenset(ending[1:] for ending in IMAGE_ENDINGS)
_LABELS = ("cls", "json")


@dataclass(slots=True)
class _Sample:
    """Members of one name."""

    name: str
    image: Member | None = None
    error: str = ""
    label: str | None = None
    has_label: bool = False


@dataclass
class _Notes:
    """What is worth a warning, counted with the first example."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self.examples.setdefault(what, name)

    def log(self, uri: str) -> None:
        for what, count in self.counts.items():
            logger.warning("%s: %s: %d, such as %s", uri, what, count, printable(self.examples[what]))


def index_tar(uri: str) -> tuple[Shard, FoundLabels]:
    """Index the images of a tar by reading all its headers.

    Raises:
        DataError: it is compressed, no tar or truncated; it holds no image; or members of a sample are not neighbors.
    """
    size_bytes, version = record_file_state(uri)
    notes, errors, columns, labels = _Notes(), dict[int, str](), list[tuple[int, int]](), list[str | None]()
    without_image, unlabeled = set[str](), set[str]()
    with reading.open_input(uri) as file:
        reader = TarReader(uri, file)
        for sample in _samples(reader, notes):
            if sample.image is None:
                if sample.has_label:
                    without_image.add(sample.name)
                continue
            if not sample.has_label:
                unlabeled.add(sample.name)
            key = len(columns)
            if sample.error:
                errors[key] = f"{uri}, key {key} ({printable(sample.name)}): {sample.error}"
            columns.append((sample.image.offset, sample.image.size))
            labels.append(sample.label)
    if apart := sorted(without_image & unlabeled):
        raise DataError(
            uri,
            found=f"image and label of {printable(apart[0])} apart from each other; such samples: {len(apart)}",
            expected="the members of a sample one after the other, as WebDataset reads them",
            fix="write the tar again, sorted: tar --sort=name -cf …",
        )
    if without_image:
        notes.counts["labels without an image"] = len(without_image)
        notes.examples["labels without an image"] = min(without_image)
    notes.log(uri)
    if not columns:
        expected = f"members such as 0001.jpg ({', '.join(IMAGE_ENDINGS)})"
        raise DataError(uri, found="no image", expected=expected, fix="check the path")
    offsets, sizes = np.array(columns, np.int64).T.copy()
    keys = np.arange(len(columns), dtype=np.int64)
    shard = Shard(uri, size_bytes, keys, offsets, sizes, version=version, layout=TarMembers(errors))
    text = pa.array(labels, pa.large_string())
    return shard, FoundLabels(text if text.null_count < len(text) else None, "a member .cls, or .json with a label")


def _samples(reader: TarReader, notes: _Notes) -> Iterator[_Sample]:
    """Group neighboring members by name, as WebDataset does; other files are passed over."""
    foreign = dict[str, bool]()
    sample: _Sample | None = None
    for member in reader.members():
        folder, _, base = member.name.rpartition("/")
        if folder not in foreign:
            foreign[folder] = any(is_foreign(part) for part in folder.split("/") if part not in (".", ".."))
        stem, dot, ending = base.partition(".")
        ending = ending.lower()
        if foreign[folder] or is_foreign(base):
            notes.add("passed over, hidden or of other programs", member.name)
            continue
        if not dot or (ending not in _IMAGES and ending not in _LABELS):
            if "." + ending.rpartition(".")[2] in IMAGE_ENDINGS:
                notes.add("passed over, images with a second dot in their name", member.name)
            continue
        name = member.name[: len(member.name) - len(base) + len(stem)]
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            sample = _Sample(name)
        if ending in _IMAGES:
            _add_image(sample, member)
        else:
            _add_label(sample, member, ending, reader, notes)
    if sample is not None:
        yield sample


def _add_image(sample: _Sample, member: Member) -> None:
    if sample.image is not None:
        sample.error = "found two images of this name; expected one"
        return
    sample.image = member
    if member.special:
        sample.error = f"found {member.special}; expected the image itself (tar --hard-dereference -h)"
    elif not member.size:
        sample.error = "found 0 bytes; expected an image"


def _add_label(sample: _Sample, member: Member, ending: str, reader: TarReader, notes: _Notes) -> None:
    """Read the label; `.cls` counts before `.json`. One that cannot be read is none, with a warning."""
    if sample.has_label and ending == "json":
        return
    try:
        if member.special or member.size > _MOST_LABEL_BYTES:
            raise ValueError(member.special or f"{member.size} bytes")
        content = reader.read(member.offset, member.size)
        label = content.decode("utf-8-sig").strip().strip("\0") if ending == "cls" else _label_in(parse_json(content))
    except ValueError as error:
        notes.add("labels that cannot be read", f"{member.name} ({str(error)[:80]})")
        label = None
    sample.label, sample.has_label = label or None, True


def _label_in(value: Any) -> str | None:
    if not isinstance(value, dict):
        raise ValueError(f"JSON of a {type(value).__name__}, not of an object")
    label = next((value[key] for key in LABEL_KEYS if value.get(key) is not None), None)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise ValueError(f"a label of type {type(label).__name__}")
    return None if label is None else str(label).strip()
