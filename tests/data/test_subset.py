from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.data.subset import ShortIdentities, fraction_of_images, hash_keys, images_per_identity, write_subset
from lafs_ray.errors import DataError


def write_plain(path: Path, labels: list[int]) -> None:
    """A file of placeholder images with these labels; image i has key i."""
    with RecordWriter(str(path)) as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack(Header(0, float(label), key), b"image"))


# Identities 0-2 have 6, 2 and 4 images, in no order.
LABELS = [0, 1, 0, 2, 0, 2, 0, 1, 2, 0, 2, 0]


@pytest.fixture
def faces(tmp_path: Path) -> FaceSet:
    write_plain(tmp_path / "a.rec", LABELS)
    return open_faces(str(tmp_path / "a.rec"))


def chosen(faces: FaceSet, count: int, seed: int = 0, short: ShortIdentities = "error") -> NDArray[np.int64]:
    return images_per_identity(faces, faces.labels(), count, seed, short)


@pytest.mark.parametrize("count", [1, 2])
def test_images_per_identity__of_every_identity(faces: FaceSet, count: int) -> None:
    """Every identity has exactly k images, in ascending order of number."""
    numbers = chosen(faces, count)
    assert np.bincount(faces.labels()[numbers]).tolist() == [count] * 3
    assert (np.diff(numbers) > 0).all()


def test_images_per_identity__seeds_and_nesting(faces: FaceSet) -> None:
    """The same seed gives the same subset, k = 1 is part of k = 2, and other seeds differ."""
    for seed in range(5):
        assert set(chosen(faces, 1, seed)) < set(chosen(faces, 2, seed))
        assert chosen(faces, 2, seed).tolist() == chosen(faces, 2, seed).tolist()
    assert len({tuple(chosen(faces, 2, seed)) for seed in range(20)}) > 5


def test_images_per_identity__every_image_can_be_chosen(faces: FaceSet) -> None:
    """Over seeds each of an identity's six images is taken about as often as the others."""
    counts = np.zeros(12)
    for seed in range(600):
        counts[chosen(faces, 1, seed)] += 1
    of_first = counts[np.array(LABELS) == 0]
    # 600 choices among six: 100 ± 9.1 each; four standard deviations.
    assert (np.abs(of_first - 100) < 37).all()


def test_subset__does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    """An image is chosen by its file's name and its key, whichever file is read first."""
    write_plain(tmp_path / "x.rec", LABELS)
    write_plain(tmp_path / "y.rec", LABELS)
    both = open_faces(f"{tmp_path}/*.rec")
    alone = open_faces(str(tmp_path / "y.rec"))
    assert np.array_equal(hash_keys(both, 7)[12:], hash_keys(alone, 7))
    assert len(np.unique(hash_keys(both, 7))) == 24


def test_images_per_identity__too_few(faces: FaceSet) -> None:
    """Identities with too few images are named with their counts, and the keys to fix."""
    with pytest.raises(DataError) as raised:
        chosen(faces, 5)
    message = str(raised.value)
    assert "2 of 3 identities with too few images: identity 1 has 2, 2 has 4" in message
    assert "at least 5 images of each (data.subset.images_per_identity)" in message
    assert "data.subset.short_identities" in message


@pytest.mark.parametrize(("short", "counts"), [("take_all", [5, 2, 4]), ("drop", [5])])
def test_images_per_identity__short_identities(faces: FaceSet, short: ShortIdentities, counts: list[int]) -> None:
    """take_all uses all images of short identities, drop leaves them out."""
    numbers = chosen(faces, 5, short=short)
    assert np.bincount(faces.labels()[numbers]).tolist() == counts


def test_images_per_identity__dropping_all_is_refused(faces: FaceSet) -> None:
    """An empty subset is an error, not an empty run."""
    with pytest.raises(DataError, match="3 of 3 identities"):
        chosen(faces, 7, short="drop")


def test_images_per_identity__unlabeled_images_are_not_taken(faces: FaceSet) -> None:
    """A damaged record without a label belongs to no identity."""
    labels = faces.labels()
    labels[[0, 2]] = -1
    numbers = images_per_identity(faces, labels, 2, 0, "error")
    assert not {0, 2} & set(numbers.tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.25, 1.0])
def test_fraction__random_and_head(faces: FaceSet, fraction: float) -> None:
    """A fraction is that share of the images, at least one; head is the first of them."""
    count = {0.01: 1, 0.25: 3, 1.0: 12}[fraction]
    assert fraction_of_images(faces, fraction, 0, "head").tolist() == list(range(count))
    numbers = fraction_of_images(faces, fraction, 0, "random")
    assert len(set(numbers.tolist())) == count
    assert (np.diff(numbers) > 0).all()
    if fraction == 0.25:
        seeds = [tuple(fraction_of_images(faces, fraction, s, "random")) for s in range(9)]
        assert len(set(seeds)) > 3
        smaller = fraction_of_images(faces, 0.1, 0, "random")
        assert set(smaller) < set(numbers), "fractions of one seed are nested"


def test_subset__reads_the_chosen_records(tmp_path: Path) -> None:
    """A subset over two files, one of them empty, reads the same as the full set."""
    write_plain(tmp_path / "x.rec", LABELS)
    write_plain(tmp_path / "y.rec", LABELS[::-1])
    whole = open_faces(f"{tmp_path}/*.rec")
    for index in ([1, 5, 13, 20], [13, 20], [0, 2]):
        numbers = np.array(index)
        subset = whole.subset(numbers)
        ours, theirs = subset.read(np.arange(len(index))), whole.read(numbers)
        assert subset.num_images == len(index)
        for name in ("shard", "key", "label"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.images == theirs.images
        assert subset.labels().tolist() == whole.labels()[numbers].tolist()


def test_subset__fingerprint_tells_subsets_apart(faces: FaceSet) -> None:
    """Other images, another fingerprint; the same images, the same."""
    prints = [faces.subset(np.array(index)).fingerprint for index in ([0, 1], [0, 2], [0, 1])]
    assert prints[0] == prints[2]
    assert len({faces.fingerprint, *prints}) == 3


def test_write_subset__lists_file_key_and_label(tmp_path: Path) -> None:
    """The list names each chosen image by file and key, and its label."""
    write_plain(tmp_path / "x.rec", LABELS)
    write_plain(tmp_path / "y.rec", LABELS)
    subset = open_faces(f"{tmp_path}/*.rec").subset(np.array([3, 13]))
    write_subset(str(tmp_path / "subset.parquet"), [subset])
    rows = pq.read_table(tmp_path / "subset.parquet").to_pylist()
    assert rows == [{"file": "x.rec", "key": 3, "label": 2}, {"file": "y.rec", "key": 1, "label": 1}]
