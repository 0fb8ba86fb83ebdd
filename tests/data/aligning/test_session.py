"""From photos to packed faces or points; the report has every photo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv

from lafs_ray.data.aligning import parts, session
from lafs_ray.data.aligning.parts import write_part
from lafs_ray.data.aligning.photos import PhotoRules
from lafs_ray.data.aligning.session import AlignOptions, Outcome, align_to_points, align_to_set
from lafs_ray.data.detection.attempts import FaceRules
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import Apply, apply_in_process, pack_faces
from lafs_ray.errors import DataError, UserError
from tests.data.detection.photos import encoded, generated_face, mtcnn, mtcnn_folder, photo_of, true_points
from tests.data.packing.sets import content, write_plain
from tests.training.faces import NO_IMAGE

__all__ = ["mtcnn", "mtcnn_folder"]

pytestmark = pytest.mark.usefixtures("mtcnn")


def write_photos(folder: Path, names: Sequence[str], first: int = 0) -> None:
    """Write photos of one face each, of another identity and place in each."""
    for number, name in enumerate(names, first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo_of((number, 60 + number % 7, 64, 112), size=(240, 240))))


def aligned(
    source: Path, out: Path, apply: Apply = apply_in_process, pack: dict[str, Any] | None = None, **options: Any
) -> Outcome:
    rules = options.pop("rules", PhotoRules(FaceRules()))
    return align_to_set(
        AlignOptions("mtcnn", rules, **options), PackOptions((str(source),), str(out), **pack or {}), apply
    )


def faces_of(path: Path) -> dict[int, np.ndarray]:
    """The faces of an aligned set by the number of their record before it was shuffled."""
    faces = open_faces(str(path))
    rows = faces.read(np.arange(faces.num_images))
    reports = {row["record"]: row["path"] for row in pq.read_table(path / session.REPORT).to_pylist()}
    order = [header_number(path, key) for key in range(faces.num_images)]
    assert sorted(order) == sorted(record for record in reports if record is not None)
    return {number: decode_image(image, color_order="rgb") for number, image in zip(order, rows.images, strict=True)}


def header_number(path: Path, key: int) -> int:
    """id2 of a record in the only shard."""
    from lafs_ray.data.recordio import read_index, unpack

    shard = next(path.glob("*.rec"))
    offsets = dict(zip(*(column.tolist() for column in read_index(str(shard.with_suffix(".idx")))), strict=True))
    return int(unpack(shard.read_bytes()[offsets[key] + 8 :])[0].id2)


def test_photos__become_the_faces_that_are_in_them(tmp_path: Path) -> None:
    """Faces of a labeled folder are cut out where they are; labels are those of the folders."""
    write_photos(tmp_path / "photos", ["b/0.png", "b/1.png", "a/2.png"])
    outcome = aligned(tmp_path / "photos", tmp_path / "set")
    assert outcome.counts is not None
    assert outcome.counts.faces == 3
    identities = csv.read_csv(tmp_path / "set" / "identities.csv").to_pydict()
    assert identities["name"] == ["a", "b"]
    assert identities["images"] == [1, 2]
    # In the order of the files: a/2, b/0, b/1.
    for face, number in zip((faces_of(tmp_path / "set")[n] for n in range(3)), (2, 0, 1), strict=True):
        inside = np.s_[4:-4, 4:-4]
        # The small networks are off by up to a pixel; JPEG and interpolation add some gray values.
        assert np.abs(face[inside].astype(int) - generated_face(number)[inside]).mean() < 6


def test_photos__without_labels(tmp_path: Path) -> None:
    """A folder without subfolders makes a set without labels."""
    write_photos(tmp_path / "photos", ["0.png", "1.png"])
    outcome = aligned(tmp_path / "photos", tmp_path / "set")
    assert outcome.manifest is not None
    assert (outcome.manifest.images, outcome.manifest.identities, outcome.manifest.unlabeled) == (2, 0, 2)


def test_rec_of_photos__is_aligned(tmp_path: Path) -> None:
    """Records of photos, with swapped channels, keep their labels; the aligned set is RGB."""
    swapped = [encoded(photo_of((number, 40, 40, 100))[..., ::-1]) for number in range(2)]
    write_plain(tmp_path / "photos.rec", [1, 0], swapped)
    rules = PhotoRules(FaceRules(), color_order="bgr")
    outcome = aligned(tmp_path / "photos.rec", tmp_path / "set", rules=rules)
    assert outcome.manifest is not None
    assert outcome.manifest.color_order == "rgb"
    assert sorted(open_faces(str(tmp_path / "set")).labels().tolist()) == [0, 1]
    assert faces_of(tmp_path / "set")[0][..., 2].mean() < 12  # The faces have no blue.


def mixed_folder(folder: Path) -> None:
    """One photo of each kind."""
    write_photos(folder, ["0-good.png"])
    (folder / "1-none.png").write_bytes(encoded(photo_of()))
    (folder / "2-small.png").write_bytes(encoded(photo_of((2, 60, 60, 26))))
    (folder / "3-several.png").write_bytes(encoded(photo_of((3, 30, 30, 60), (4, 150, 150, 80), size=(300, 300))))
    (folder / "4-broken.jpg").write_bytes(NO_IMAGE)
    (folder / "5-tight.png").write_bytes(encoded(photo_of((5, 0, 0, 112), size=(112, 112))))
    turned = Image.fromarray(np.rot90(photo_of((6, 40, 30, 100), size=(200, 160))))
    exif = Image.Exif()
    exif[274] = 6  # To be turned clockwise to be upright.
    turned.save(folder / "6-turned.jpg", exif=exif, quality=98, subsampling=0)


def test_report__tells_what_became_of_each_photo(tmp_path: Path) -> None:
    """Each kind is counted and listed; the points of a turned photo are those of the upright one."""
    mixed_folder(tmp_path / "photos")
    report = tmp_path / "report.parquet"
    rules = PhotoRules(FaceRules(min_eye_px=12))
    outcome = aligned(tmp_path / "photos", tmp_path / "set", report=str(report), rules=rules)
    assert outcome.counts is not None
    assert outcome.counts.statuses == {"aligned": 4, "no face": 1, "too small": 1, "unreadable": 1}
    assert (outcome.counts.several, outcome.counts.second_search, outcome.counts.turned) == (1, 1, 1)
    rows = {Path(row["path"]).name[0]: row for row in pq.read_table(report).to_pylist()}
    kinds = ["aligned", "no face", "too small", "aligned", "unreadable", "aligned", "aligned"]
    assert [rows[name]["status"] for name in "0123456"] == kinds
    assert [rows[name]["record"] for name in "0123456"] == [0, None, None, 1, None, 2, 3]
    assert rows["3"]["faces"] == 2
    assert "do not decode" in rows["4"]["reason"]
    assert rows["5"]["second_search"]
    assert rows["6"]["orientation"] == 6
    points = np.array([[rows["6"][f"{axis}{n}"] for axis in "xy"] for n in range(1, 6)])
    # As for a single search, see test_backends, and JPEG.
    np.testing.assert_allclose(points, true_points(40, 30, 100), atol=1.5)


@pytest.mark.parametrize(("choice", "number"), [("largest", [4]), ("central", [3]), ("every", [4, 3])])
def test_several_faces__are_chosen_from(tmp_path: Path, choice: Any, number: list[int]) -> None:
    """The largest face, the most central one, or all of them."""
    (tmp_path / "photos").mkdir()
    photo = photo_of((3, 190, 180, 60), (4, 60, 300, 80), size=(440, 440))
    (tmp_path / "photos" / "0.png").write_bytes(encoded(photo))
    aligned(tmp_path / "photos", tmp_path / "set", rules=PhotoRules(FaceRules(choice)))
    found = faces_of(tmp_path / "set")
    assert len(found) == len(number)
    for record, expected in enumerate(number):
        distance = [np.abs(found[record].astype(int) - generated_face(one)).mean() for one in (3, 4)]
        assert (3, 4)[int(np.argmin(distance))] == expected


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_points__give_the_set_that_is_made_directly(tmp_path: Path, ending: str) -> None:
    """`--points`, then `pack --landmarks`: the same images and labels, byte for byte."""
    write_photos(tmp_path / "photos", ["b/0.png", "b/1.png", "a/2.png"])
    # Large faces are reduced before they are warped, in both ways.
    large = photo_of((7, 100, 100, 400), size=(600, 600))
    (tmp_path / "photos" / "a" / "large.png").write_bytes(encoded(large))
    points = str(tmp_path / f"points{ending}")
    outcome = align_to_points(
        AlignOptions("mtcnn", PhotoRules(FaceRules())), str(tmp_path / "photos"), points, apply_in_process
    )
    assert outcome.manifest is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", f"points{ending}"]
    pack_faces(PackOptions((str(tmp_path / "photos"),), str(tmp_path / "by-points"), landmarks=points))
    aligned(tmp_path / "photos", tmp_path / "directly")
    shard = "train-00000-of-00001.rec"
    assert content(tmp_path / "by-points")[shard] == content(tmp_path / "directly")[shard]


def test_points__of_a_list_make_a_list(tmp_path: Path) -> None:
    """From a list, the points are a list of its own, with complete paths and the labels."""
    write_photos(tmp_path / "photos", ["0.png", "1.png"])
    (tmp_path / "list.csv").write_text("path,label\nphotos/1.png,Ann\nphotos/0.png,\n")
    points = str(tmp_path / "elsewhere" / "points.parquet")
    align_to_points(
        AlignOptions("mtcnn", PhotoRules(FaceRules())), str(tmp_path / "list.csv"), points, apply_in_process
    )
    manifest = pack_faces(PackOptions((points,), str(tmp_path / "set")))
    assert (manifest.images, manifest.identities, manifest.unlabeled) == (2, 1, 1)


def test_sheet__shows_a_band_for_each_kind(tmp_path: Path) -> None:
    """Aligned faces, then photos: aligned, no face, too small, unreadable, several."""
    mixed_folder(tmp_path / "photos")
    aligned(
        tmp_path / "photos", tmp_path / "set", sheet=str(tmp_path / "s.png"), rules=PhotoRules(FaceRules(min_eye_px=12))
    )
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert sheet.shape == (6 * 130, 12 * 112, 3)
    assert (sheet[130 * 4 + 18 : 130 * 5] == 0).all()  # The unreadable photo.


class Killed(Exception):
    """Ends a job as a kill does."""


def test_interrupted__continues_with_the_missing_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished parts are kept; the set has the bytes of an uninterrupted one, and nothing else is left."""
    monkeypatch.setattr(parts, "_LEAST_PHOTOS", 16)
    write_photos(tmp_path / "photos", [f"{number:02}.png" for number in range(40)])
    begun: list[int] = []

    def killed_in_the_second(task: Any, shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        yield task(shared, items[0])
        raise Killed

    def recorded(task: Any, shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        if task is write_part:
            begun.extend(item.first for item in items)
        return apply_in_process(task, shared, items)

    with pytest.raises(Killed):
        aligned(tmp_path / "photos", tmp_path / "set", killed_in_the_second)
    assert len(list((tmp_path / "set" / "aligning").glob("part-*"))) == 1
    assert not (tmp_path / "set" / "manifest.json").exists()
    aligned(tmp_path / "photos", tmp_path / "set", recorded)
    assert begun == [16, 32]
    aligned(tmp_path / "photos", tmp_path / "whole")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert not (tmp_path / "set" / "aligning").exists()


def test_damaged_part__is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that a crash of the machine cut is not trusted."""
    write_photos(tmp_path / "photos", [f"{number}.png" for number in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(session, "pack_faces", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            aligned(tmp_path / "photos", tmp_path / "set")
    (part,) = (tmp_path / "set" / "aligning").glob("part-*")
    part.write_bytes(part.read_bytes()[:-100])
    outcome = aligned(tmp_path / "photos", tmp_path / "set")
    assert outcome.manifest is not None
    assert outcome.manifest.images == 3


def test_complete_set__is_verified_and_kept(tmp_path: Path) -> None:
    """The same command on a finished set looks at no photo again; damage is named."""
    write_photos(tmp_path / "photos", ["0.png", "1.png"])
    aligned(tmp_path / "photos", tmp_path / "set")
    before = content(tmp_path / "set")

    def no_detection(task: Any, shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        assert task is not write_part
        return apply_in_process(task, shared, items)

    outcome = aligned(tmp_path / "photos", tmp_path / "set", no_detection)
    assert outcome.counts is None
    assert content(tmp_path / "set") == before
    shard = tmp_path / "set" / "train-00000-of-00001.rec"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\1\1\1\1")
    with pytest.raises(DataError, match="1 bad file"):
        aligned(tmp_path / "photos", tmp_path / "set")


def test_other_request__is_refused(tmp_path: Path, face_set_path: str) -> None:
    """Another set, other rules, or records of another origin in the folder are not replaced."""
    write_photos(tmp_path / "photos", ["0.png", "1.png"])
    aligned(tmp_path / "photos", tmp_path / "set")
    before = content(tmp_path / "set")
    with pytest.raises(DataError, match="other options"):
        aligned(tmp_path / "photos", tmp_path / "set", rules=PhotoRules(FaceRules("every")))
    write_plain(tmp_path / "foreign" / "train.rec", [0], [encoded(generated_face(0))])
    with pytest.raises(DataError, match="other photos"):
        aligned(tmp_path / "photos", tmp_path / "foreign")
    assert content(tmp_path / "set") == before
    assert not (tmp_path / "foreign" / "aligning").exists()


@pytest.mark.parametrize(
    ("pack", "options", "words"),
    [
        ({"num_shards": 0}, {}, "--shards"),
        ({"seed": -1}, {}, "--seed"),
        ({}, {"report": "{tmp}/report.txt"}, "--report"),
        ({}, {"sheet": "{tmp}/photos/0.png"}, "an input of this command"),
        ({}, {"rules": PhotoRules(FaceRules(min_eye_px=500))}, "no face to keep in 2 photos: 1 no face, 1 too small"),
    ],
)
def test_mistakes__are_found_before_anything_is_left(
    tmp_path: Path, pack: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    """Bad options are refused before the first photo; without a single face, nothing stays in the folder."""
    write_photos(tmp_path / "photos", ["0.png"])
    (tmp_path / "photos" / "1.png").write_bytes(encoded(photo_of()))
    options = {name: one.format(tmp=tmp_path) if isinstance(one, str) else one for name, one in options.items()}
    with pytest.raises(UserError) as raised:
        aligned(tmp_path / "photos", tmp_path / "set", pack=pack, **options)
    assert words in str(raised.value)
    assert not (tmp_path / "set").exists()


def test_points__of_records_or_of_every_face_are_refused(tmp_path: Path, face_set_path: str) -> None:
    """A list of points is for files, with one face each; an existing one is not replaced."""
    write_photos(tmp_path / "photos", ["0.png"])
    every = AlignOptions("mtcnn", PhotoRules(FaceRules("every")))
    one = AlignOptions("mtcnn", PhotoRules(FaceRules()))
    (tmp_path / "there.csv").touch()
    for options, source, points, words in (
        (every, "photos", "p.csv", "--faces"),
        (one, face_set_path, "p.csv", "photos in"),
        (one, "photos", "there.csv", "an existing file"),
        (one, "photos", "p.txt", "--points"),
    ):
        with pytest.raises(UserError) as raised:
            align_to_points(options, str(tmp_path / source), str(tmp_path / points), apply_in_process)
        assert words in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "there.csv"]
