"""`lafs mine-neighbors`: pairs of a set in which identities recur, for a run on that set."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lafs_ray.cli import mine_neighbors
from lafs_ray.cli.commands import build_parser
from lafs_ray.cli.mine_neighbors import mine_job
from lafs_ray.cli.whiten import whiten_network
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.neighbor_pairs import read_neighbors
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.evaluation import embedding_file, mined_pairs
from lafs_ray.training.prepare import prepare_run
from tests.data.shards import samples, write_parquet, write_tar
from tests.training.faces import NO_IMAGE, face_jpegs, pixels_of, run, tiny, write_face_set

IDENTITIES, PHOTOS = 6, 40


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> str:
    """The folder of a pretraining run of one step."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(folder, face_set_path, "duration=1 steps", "optim.warmup=0 steps"))
    return str(folder / "debug")


def recurring() -> dict[int, bytes]:
    """40 photographs each of six identities, one after the other, which differ by noise."""
    generator, jpegs = np.random.default_rng(0), {}
    for identity, jpeg in enumerate(face_jpegs(IDENTITIES)):
        picture = pixels_of(jpeg)[..., ::-1].astype(np.float64)
        for photo in range(PHOTOS):
            noisy = (picture + generator.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)
            jpegs[identity * PHOTOS + photo] = cv2.imencode(".jpg", noisy)[1].tobytes()
    return jpegs


def write_recurring(path: Path, damaged: int | None = None) -> str:
    jpegs = recurring()
    if damaged is not None:
        jpegs[damaged] = NO_IMAGE
    write_face_set(path, IDENTITIES, PHOTOS, jpegs)
    return str(path)


def options(*arguments: object) -> Namespace:
    return build_parser("mine-neighbors", "lafs mine-neighbors").parse_args([str(one) for one in arguments])


def test_mine__finds_photographs_of_a_person_and_passes_damaged_ones_over(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pairs show one identity; the file is of this set, by its numbers, and a run takes it."""
    faces, out = write_recurring(tmp_path / "faces.rec", damaged=17), tmp_path / "neighbors.safetensors"
    mine_job(options(network, faces, out))
    pairs = read_neighbors(str(out), open_faces(faces).fingerprint, IDENTITIES * PHOTOS)
    first = np.repeat(pairs.faces, np.diff(pairs.starts))
    assert len(first) > 1000
    assert (first // PHOTOS == pairs.others // PHOTOS).all()
    assert {*(pairs.faces // PHOTOS).tolist()} == {*range(IDENTITIES)}
    assert 17 not in first
    assert 17 not in pairs.others
    assert f"{len(first) // 2:,} pairs of {len(pairs.faces)} faces, among 239 of 240" in capsys.readouterr().out
    found = prepare_run(tiny(tmp_path / "run", faces, f"neighbors.pairs={out}")).sampler.neighbors
    assert found is not None
    assert found.pairs.hash == pairs.hash


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_mine__of_other_shards(network: str, tmp_path: Path, kind: str) -> None:
    """The pairs of a tar or Parquet file are those of the same images as records, and a run takes them."""
    records, out = write_recurring(tmp_path / "faces.rec"), tmp_path / f"{kind}.safetensors"
    path, images = tmp_path / f"faces.{kind}", list(recurring().values())
    if kind == "tar":
        write_tar(path, samples(images, [0] * len(images)))
    else:
        write_parquet(path, 64, image=images)
    mine_job(options(network, path, out))
    mine_job(options(network, records, tmp_path / "rec.safetensors"))
    found = prepare_run(tiny(tmp_path / "run", str(path), f"neighbors.pairs={out}")).sampler.neighbors
    fingerprint = open_faces(records).fingerprint
    expected = read_neighbors(str(tmp_path / "rec.safetensors"), fingerprint, IDENTITIES * PHOTOS)
    assert found is not None
    assert found.pairs.hash == expected.hash


def test_mine__more_damaged_faces_than_allowed(network: str, tmp_path: Path) -> None:
    """Their limit is named, and nothing is written."""
    faces, out = write_recurring(tmp_path / "faces.rec", damaged=17), tmp_path / "neighbors.safetensors"
    with pytest.raises(DataError, match="damaged faces"):
        mine_job(options(network, faces, out, "--max-bad-records", "0"))
    assert not out.exists()


def test_mine__of_a_set_without_neighbors(network: str, tmp_path: Path) -> None:
    """No more faces than neighbors: no pair, and advice."""
    write_face_set(tmp_path / "few.rec", 3, 10)
    with pytest.raises(DataError, match="no neighbors among 30 faces") as caught:
        mine_job(options(network, tmp_path / "few.rec", tmp_path / "neighbors.safetensors"))
    assert "lafs whiten" in caught.value.fix
    assert "--min-shared" in caught.value.fix


def test_mine__of_damaged_faces_alone(network: str, tmp_path: Path) -> None:
    """However many may be damaged, one has to be sound; the advice is what there is for a set."""
    write_face_set(tmp_path / "none.rec", 3, 10, dict.fromkeys(range(30), NO_IMAGE))
    with pytest.raises(DataError, match="30 so far") as caught:
        mine_job(options(network, tmp_path / "none.rec", tmp_path / "neighbors.safetensors"))
    assert caught.value.expected == "at least one face"
    assert "lafs pack SET OUT --resize" in caught.value.fix


def test_mine__output_that_cannot_be_written(
    network: str, tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the faces are embedded."""

    def embedded(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(mine_neighbors, "mine_set", embedded)
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        mine_job(options(network, face_set_path, tmp_path / "file" / "neighbors.safetensors"))


def test_mine__says_that_a_network_is_not_whitened(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not gives as many pairs, of different identities; one that is gets no warning."""
    faces, whitened = write_recurring(tmp_path / "faces.rec"), tmp_path / "whitened.safetensors"
    mine_job(options(network, faces, tmp_path / "a.safetensors"))
    assert f"warning: {network} is not whitened (lafs whiten)" in capsys.readouterr().out
    whiten = build_parser("whiten", "lafs whiten").parse_args([network, faces, str(whitened), "--components", "8"])
    whiten_network(whiten)
    mine_job(options(whitened, faces, tmp_path / "b.safetensors"))
    assert "warning" not in capsys.readouterr().out


def test_mine__of_a_large_set_is_spread_over_it(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more faces than are compared, chunks from the first to the last; their numbers stay those of the set."""
    for module in (mined_pairs, embedding_file):
        monkeypatch.setattr(module, "CHUNK", 40)
    monkeypatch.setattr(mined_pairs, "_MAX_FACES", 120)
    faces, out = write_recurring(tmp_path / "faces.rec"), tmp_path / "neighbors.safetensors"
    mine_job(options(network, faces, out))
    pairs = read_neighbors(str(out), open_faces(faces).fingerprint, IDENTITIES * PHOTOS)
    assert {*(pairs.faces // PHOTOS).tolist()} == {0, 2, 5}


def test_mine__more_shared_neighbors_are_fewer_pairs(network: str, tmp_path: Path) -> None:
    """Those of a higher threshold are among those of a lower one; impossible ones are refused."""
    faces, found = write_recurring(tmp_path / "faces.rec"), {}
    for shared in (8, 26):
        out = tmp_path / f"{shared}.safetensors"
        mine_job(options(network, faces, out, "--min-shared", shared))
        pairs = read_neighbors(str(out), open_faces(faces).fingerprint, IDENTITIES * PHOTOS)
        first = np.repeat(pairs.faces, np.diff(pairs.starts))
        found[shared] = {*zip(first.tolist(), pairs.others.tolist(), strict=True)}
    assert found[26] < found[8]
    for impossible in (0, 31):
        with pytest.raises(ConfigError, match="--min-shared"):
            mine_job(options(network, faces, tmp_path / "none.safetensors", "--min-shared", impossible))


def test_mine__refuses_what_is_there(network: str, tmp_path: Path) -> None:
    """An output that exists stays; with --force it is replaced."""
    faces, out = write_recurring(tmp_path / "faces.rec"), tmp_path / "neighbors.safetensors"
    out.write_text("mine")
    with pytest.raises(DataError, match="an existing file"):
        mine_job(options(network, faces, out))
    assert out.read_text() == "mine"
    mine_job(options(network, faces, out, "--force"))
    assert read_neighbors(str(out), open_faces(faces).fingerprint, IDENTITIES * PHOTOS).faces.size
