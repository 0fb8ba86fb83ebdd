"""WebDataset and Parquet shards through the input pipeline, packing and evaluation: the same as a `.rec`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.eval_sets import open_images, open_labeled
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.packing.inspection import inspect_faces
from lafs_ray.data.packing.options import PackOptions
from lafs_ray.data.packing.session import pack_faces
from lafs_ray.data.packing.source_factory import open_source
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.errors import DataError
from lafs_ray.training.input_pipeline import Columns, Preprocessor, StepBatch, local_stream
from lafs_ray.training.prepare import check_run
from tests.data.packing.sets import images_by_label, write_folder, write_plain
from tests.data.shards import samples, write_parquet, write_tar
from tests.training.builds import finetune, pretrain
from tests.training.faces import TINY_FINETUNE, TINY_PRETRAIN, face_jpegs

KINDS = ("rec", "tar", "parquet")
LABELS = [number % 5 for number in range(60)]
TEMPLATE = ["landmarks.source=template", "landmarks.weights=null"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders rec, tar and parquet of the same images in shards of 40 and 20, the 10th damaged."""
    folder, images = tmp_path_factory.mktemp("kinds"), list(face_jpegs(60, seed=2))
    images[10] = b"no image"
    for kind in KINDS:
        (folder / kind).mkdir()
    for name, part in (("a", slice(40)), ("b", slice(40, 60))):
        write_plain(folder / "rec" / f"{name}.rec", LABELS[part], images[part])
        write_tar(folder / "tar" / f"{name}.tar", samples(images[part], LABELS[part]))
        write_parquet(folder / "parquet" / f"{name}.parquet", 8, image=images[part], label=LABELS[part])
    return folder


def as_it_is(faces: Columns) -> Columns:
    return faces


def stream(faces: FaceSet, first: int = 0) -> list[StepBatch]:
    sampler = EpochSampler(faces.num_images, 8, seed=5, chunk_records=4)
    return list(local_stream(faces, sampler, Preprocessor(faces, "rgb", 5, as_it_is, 5), first, 14))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_stream__equals_that_of_the_records(sets: Path, kind: str) -> None:
    """Two epochs, from any step, and from a pickled copy: the batches of the .rec, bit for bit."""
    expected = stream(open_faces(str(sets / "rec")))
    faces = open_faces(str(sets / kind))
    found = stream(faces)
    assert len(found) == len(expected) == 14
    for ours, theirs in zip(found, expected, strict=True):
        assert all(np.array_equal(ours.columns[name], theirs.columns[name]) for name in theirs.columns)
        assert [line.replace(kind, "rec") for line in ours.skipped] == theirs.skipped
    assert sum(map(len, (batch.skipped for batch in found))) == 2
    resumed = stream(pickle.loads(pickle.dumps(faces)), first=9)
    assert all(np.array_equal(a.columns["image"], b.columns["image"]) for a, b in zip(resumed, found[9:], strict=True))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_runs__are_checked_as_for_records(sets: Path, kind: str) -> None:
    """A supervised and an unlabeled run open the set, with its classes."""
    inputs = check_run(finetune(*TINY_FINETUNE, f"data.path={sets / kind}"))
    assert (inputs.num_classes, inputs.num_identities) == (5, 5)
    assert check_run(pretrain(*TINY_PRETRAIN, *TEMPLATE, f"data.path={sets / kind}")).faces.num_images == 60


@pytest.mark.parametrize("kind", KINDS[1:])
def test_runs__without_labels(tmp_path: Path, kind: str) -> None:
    """LAFS runs; supervised training says where it has looked for labels."""
    images = face_jpegs(20)
    write_tar(tmp_path / "x.tar", samples(images))
    write_parquet(tmp_path / "x.parquet", image=images, identity_name=["a"] * 20)
    path = f"data.path={tmp_path / 'x'}.{kind}"
    assert check_run(pretrain(*TINY_PRETRAIN, *TEMPLATE, path)).num_identities is None
    with pytest.raises(DataError, match="no labels: none of 20 records has an identity") as raised:
        check_run(finetune(*TINY_FINETUNE, path))
    assert {"tar": "a member .cls", "parquet": "a column label"}[kind] in raised.value.expected


def test_runs__images_of_another_size(tmp_path: Path) -> None:
    """Photos are refused at the start, with the two remedies; a few of the right size are enough to go on."""
    import cv2

    photo = cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes()
    write_tar(tmp_path / "x.tar", samples([photo] * 20))
    with pytest.raises(DataError, match="images of 80x60") as raised:
        check_run(pretrain(*TINY_PRETRAIN, *TEMPLATE, f"data.path={tmp_path / 'x.tar'}"))
    assert "lafs align" in raised.value.fix
    write_tar(tmp_path / "x.tar", samples([*face_jpegs(10), photo]))
    check_run(pretrain(*TINY_PRETRAIN, *TEMPLATE, f"data.path={tmp_path / 'x.tar'}"))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_pack__gives_the_set_of_the_records(sets: Path, tmp_path: Path, kind: str) -> None:
    """The same images under the same labels, and the damaged one is left out by name."""
    packed = {}
    for one in ("rec", kind):
        out = tmp_path / one
        manifest = pack_faces(PackOptions(sources=(str(sets / one),), out=str(out)))
        assert manifest.left_out["images"] == 1
        assert "key 10" in manifest.left_out["first"][0]
        packed[one] = images_by_label(out)
    assert packed[kind] == packed["rec"]
    assert manifest.sources[0]["kind"] == {"tar": "webdataset", "parquet": "parquet"}[kind]


def test_pack__keeps_the_names_of_labels(tmp_path: Path) -> None:
    """identities.csv of the set has the names of .cls and of a text column."""
    images = face_jpegs(4)
    write_tar(tmp_path / "x.tar", samples(images, ["mia", "adam", "mia", "zoe"]))
    write_parquet(tmp_path / "x.parquet", image=images, label=["mia", "adam", "mia", "zoe"])
    for kind in KINDS[1:]:
        pack_faces(PackOptions(sources=(str(tmp_path / f"x.{kind}"),), out=str(tmp_path / kind)))
        rows = (tmp_path / kind / "identities.csv").read_text().splitlines()
        assert [row.split(",")[2:] for row in rows[1:]] == [['"adam"', "1"], ['"mia"', "2"], ['"zoe"', "1"]]


def test_pack__exclusion_by_shard_and_key(sets: Path, tmp_path: Path) -> None:
    """An audit's list names the file and the number of the sample."""
    listed = tmp_path / "exclude.csv"
    listed.write_text(f"shard,key\n{sets}/tar/a.tar,10\n{sets}/tar/b.tar,0\n")
    options = PackOptions(sources=(str(sets / "tar"),), out=str(tmp_path / "out"), exclude=str(listed))
    assert pack_faces(options).images == 58


def test_folders__lists_beside_images_stay_lists(tmp_path: Path) -> None:
    """A folder of images with a table of points, or a list of paths, is none of shards."""
    write_folder(tmp_path / "photos", {"a": 2})
    write_parquet(tmp_path / "photos" / "points.parquet", path=["a/0.jpg"], x1=[1.0])
    write_parquet(tmp_path / "list.parquet", path=["photos/a/0.jpg"], label=["a"])
    assert open_source(str(tmp_path / "photos")).kind == "folder"
    assert open_source(str(tmp_path / "list.parquet")).kind == "list"
    assert open_images(str(tmp_path / "photos")).num_images == 2
    write_parquet(tmp_path / "photos" / "points.parquet", image=[b"1"])
    (tmp_path / "photos" / "0.jpg").write_bytes(b"")
    (tmp_path / "photos" / "a" / "0.jpg").unlink()
    (tmp_path / "photos" / "a" / "1.jpg").unlink()
    assert open_source(str(tmp_path / "photos")).kind == "folder"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_evaluation__and_inspection(tmp_path: Path, kind: str) -> None:
    """Labeled sets, images to embed, and the page of --inspect."""
    images = face_jpegs(20)
    write_tar(tmp_path / "x.tar", samples(images, [n // 2 for n in range(20)]))
    write_parquet(tmp_path / "x.parquet", 5, image=images, label=[n // 2 for n in range(20)])
    path = str(tmp_path / f"x.{kind}")
    labeled = open_labeled(path)
    assert labeled.labels.tolist() == [n // 2 for n in range(20)]
    assert labeled.faces.read(3, 5).shape == (2, 112, 112, 3)
    assert open_images(path).read(3, 4)[0].where == f"{path}, key 3"
    page = "\n".join(inspect_faces(path, sheet=str(tmp_path / "sheet.png"), check_all=False))
    for line in (f"layout             {'WebDataset' if kind == 'tar' else 'Parquet'} (1)", "10 with images, 10 listed"):
        assert line in page
