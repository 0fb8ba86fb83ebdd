"""insightface's files as they are found: no index, record 0 after the images, more images than float32 counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data import recordio, shard
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.record_index import open_shard
from lafs_ray.data.recordio import Header
from lafs_ray.data.shard import Identities
from tests.data.record_sets import all_rows, refusal

Record = tuple[int, Header, bytes]


def insightface_records(labels: Sequence[int], kind: np.dtype[np.floating] | None = None) -> list[Record]:
    """Return (key, header, payload) of record 0, the images and an identity record for each run of labels.

    Args:
        labels: of the images.
        kind: what keys in ranges are rounded to.
    """

    def stored(*keys: int) -> tuple[float, ...]:
        return tuple(np.array(keys).astype(kind or np.float32).astype(float).tolist())

    first = len(labels) + 1
    starts = [key for key in range(1, first) if key == 1 or labels[key - 1] != labels[key - 2]]
    records: list[Record] = [(0, Header(2, stored(first, first + len(starts)), 0), b"")]
    records += [(key, Header(0, float(label), key), b"image %d" % key) for key, label in enumerate(labels, 1)]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], first], strict=True)):
        records.append((first + number, Header(2, stored(start, stop), first + number), b""))
    return records


def write(path: Path, records: Sequence[Record], *, ids: bool = True, index: str = "keys") -> Path:
    """Write records in this order; the index has their keys, counts them (`order`), or is missing (`none`)."""
    with recordio.RecordWriter(str(path)) as writer:
        for number, (key, header, payload) in enumerate(records):
            named = Header(header.flag, header.label, header.id if ids else 0)
            writer.write(key if index == "keys" else number, recordio.pack(named, payload))
    if index == "none":
        path.with_suffix(".idx").unlink()
    return path


def face2rec2_order(records: list[Record]) -> list[Record]:
    """Return the records as insightface's face2rec2.py writes them: images, record 0, identities."""
    images = [record for record in records if record[2]]
    return [*images, *(record for record in records if not record[2])]


LABELS = [4, 4, 4, 5, 6, 6]


@pytest.mark.parametrize("index", ["keys", "order", "none"])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("images_first", [True, False])
def test_open_faces__record_0_anywhere(tmp_path: Path, images_first: bool, ids: bool, index: str) -> None:
    """With its index, one that counts, or none, with ids or without: the same images, keys, labels and identities."""
    records = insightface_records(LABELS)
    path = write(tmp_path / "a.rec", face2rec2_order(records) if images_first else records, ids=ids, index=index)
    faces = open_faces(str(path))
    rows = all_rows(faces)
    assert rows.key.tolist() == [1, 2, 3, 4, 5, 6]
    assert rows.images == [b"image %d" % key for key in range(1, 7)]
    assert rows.label.tolist() == faces.labels().tolist() == LABELS
    assert (faces.num_identities, any(rows.errors)) == (3, False)


def test_open_faces__identities_before_record_0(tmp_path: Path) -> None:
    """Ids decide, wherever the records lie."""
    path = write(tmp_path / "a.rec", insightface_records(LABELS)[::-1], index="none")
    faces = open_faces(str(path))
    assert sorted(faces.keys.tolist()) == [1, 2, 3, 4, 5, 6]
    assert (faces.num_identities, all_rows(faces).label.tolist()) == (3, LABELS[::-1])


def test_open_faces__plain_file_whose_ids_are_no_keys(tmp_path: Path) -> None:
    """Ids that repeat, or that no index could hold, are no keys: records are counted; an empty image is damaged."""
    for ids in ([7, 7, 8, 9], [1 << 63, 1, 2, 3]):
        records: list[Record] = [(n, Header(0, float(n), id_), b"image") for n, id_ in enumerate(ids)]
        records[2] = (2, Header(2, (0.0, 1.0), ids[2]), b"")
        rows = all_rows(open_faces(str(write(tmp_path / "a.rec", records, index="none"))))
        assert rows.key.tolist() == [0, 1, 2, 3]
        assert [bool(error) for error in rows.errors] == [False, False, True, False]


HALF = np.dtype(np.float16)  # Exact up to 2^11 as float32 is up to 2^24.


def many_labels(count: int) -> list[int]:
    """Return labels of `count` images, one to four of each identity."""
    return np.repeat(np.arange(count), np.random.default_rng(count).integers(1, 5, count))[:count].tolist()


@pytest.mark.parametrize("count", [2047, 2049, 2051, 4099])
def test_labels__more_images_than_ranges_can_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Where keys are rounded, labels and counts are those of the records (at 2^11 images, with float16 for float32)."""
    monkeypatch.setattr(shard, "KEY_DTYPE", HALF)
    labels = many_labels(count)
    records = insightface_records(labels, HALF)
    for ordered in (records, face2rec2_order(records)):
        for index in ("keys", "none"):
            faces = open_faces(str(write(tmp_path / "a.rec", ordered, index=index)))
            assert (faces.num_images, faces.num_identities) == (count, len(set(labels)))
            assert faces.labels().tolist() == labels


def test_open_faces__rounded_keys_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost record is refused though the stated counts are rounded, as is an image among the identities."""
    monkeypatch.setattr(shard, "KEY_DTYPE", HALF)
    records = insightface_records(many_labels(3003), HALF)
    assert "key 2500 is missing" in refusal(write(tmp_path / "a.rec", records[:2500] + records[2501:])).found
    images = [(key, header, payload or b"image" * bool(key)) for key, header, payload in records]
    assert "no first identity record" in refusal(write(tmp_path / "a.rec", images)).found


def test_uncertain__of_glint360k(tmp_path: Path) -> None:
    """Near 2^24, the keys whose label a float32 range leaves open are at most two per identity that begins there."""
    exact = np.arange(1, 17_091_658, 47)
    stored = exact.astype(np.float32).astype(np.int64)
    table = Identities(0, stored, np.append(stored[1:], 17_091_658))
    keys = np.arange(16_777_000, 17_091_658)
    truth = np.searchsorted(exact, keys, side="right") - 1
    uncertain, labels = table.uncertain(keys), table.labels(keys)
    assert np.array_equal(labels[~uncertain], truth[~uncertain])
    assert not np.array_equal(labels, truth)
    assert not uncertain[keys < 1 << 24].any()
    assert 0 < uncertain.sum() <= 2 * len(exact[exact >= 1 << 24])


def test_open_shard__no_message_advises_to_lose_the_index(tmp_path: Path) -> None:
    """What is wrong with an index is corrected by copying it, never by deleting it."""
    path = write(tmp_path / "a.rec", insightface_records(LABELS))
    path.with_suffix(".idx").write_text("0\t0\n1\t4\n")
    assert "copy" in refusal(path).fix
    assert "delete" not in refusal(path).fix
    assert open_shard(str(write(tmp_path / "b.rec", insightface_records(LABELS)))).identities is not None
