"""What is found before the first trial: unreadable files, leakage, runs too short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.config.loader import resolve
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.neighbor_pairs import NeighborPairs, write_neighbors
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.run_description import write_description
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.preflight import check_sweep
from lafs_ray.tuning.trial_config import read_sweep
from tests.training.faces import PRETRAIN, ROOT, face_jpegs, write_face_set
from tests.tuning.sweeps import PRETRAIN_SETTINGS, pair_file, sweep, tree


def refused(folder: Path, data: Path | str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_sweep(sweep(folder, data, **changes))
    return str(caught.value)


def test_check_sweep__valid(tmp_path: Path, face_set_path: str) -> None:
    """It leaves no file behind."""
    fingerprints = check_sweep(sweep(tmp_path, face_set_path, confirm={"pairs": pair_file(tmp_path, "test.bin", 2)}))
    assert fingerprints == {"trials": open_faces(face_set_path).fingerprint}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["select.bin", "test.bin"]


def test_check_sweep__files_that_are_missing(tmp_path: Path) -> None:
    """All of them in one message."""
    confirm = {"pairs": str(tmp_path / "none.bin")}
    message = refused(tmp_path, tmp_path / "nowhere.rec", confirm=confirm)
    assert "2 configuration errors" in message
    assert "confirm: " in message
    assert "none.bin" in message
    assert "nowhere.rec" in message
    assert not (tmp_path / "sweeps").exists()


def test_check_sweep__pairs_of_neighbors_that_are_missing(tmp_path: Path, face_set_path: str) -> None:
    """A file that only some trials of a pretraining sweep read is opened before the first."""
    pairs, faces = tmp_path / "pairs.safetensors", open_faces(face_set_path)
    table = NeighborPairs.from_pairs(np.array([0, 1]), np.array([1, 0]))
    write_neighbors(str(pairs), table, faces.fingerprint, faces.num_images, {})
    changes: dict[str, Any] = {"task": "pretrain", "base": str(ROOT / PRETRAIN)}
    settings = {**PRETRAIN_SETTINGS, "data.path": face_set_path}
    for names, is_refused in (([str(pairs)], False), ([str(pairs), str(tmp_path / "none.safetensors")], True)):
        plan = tree(tmp_path, face_set_path, **changes) | {"settings": settings}
        plan["space"] = {"neighbors.pairs": {"choice": names}}
        read = read_sweep(resolve(SweepConfig, plan, "sweep"))
        if is_refused:
            with pytest.raises(ConfigError, match=r"none\.safetensors"):
                check_sweep(read)
        else:
            check_sweep(read)


def test_check_sweep__a_metric_that_pairs_do_not_define(tmp_path: Path, face_set_path: str) -> None:
    """TAR at FAR needs pairs of both kinds in every fold; pairs too few for ten folds are none."""
    ten = str(tmp_path / "ten.bin")
    write_pairs(ten, face_jpegs(20, seed=1), [True, False] * 5)
    tar = {"metric": "tar_at_far", "far": 0.1, "pairs": ten}
    message = refused(tmp_path, face_set_path, objective=tar)
    assert "ten.bin: verification pairs, fold 0: found 1 same and 0 different" in message
    twenty = str(tmp_path / "twenty.bin")
    write_pairs(twenty, face_jpegs(40, seed=1), [True, False] * 10)
    message = refused(tmp_path, face_set_path, objective={**tar, "pairs": twenty})
    assert "twenty.bin: verification pairs: found 10 different pairs for far 0.1; expected 30 or more" in message
    write_pairs(str(tmp_path / "few.bin"), face_jpegs(8, seed=1), [True, False] * 2)
    message = refused(tmp_path, face_set_path, objective={"pairs": str(tmp_path / "few.bin")})
    assert "few.bin: verification pairs: found 4 pairs for 10 folds" in message


def test_check_sweep__more_reports_than_steps(tmp_path: Path, face_set_path: str) -> None:
    """Every report needs its own step, in all trials."""
    assert "objective.reports: 5 of a run of 4 steps" in refused(tmp_path, face_set_path, objective={"reports": 5})
    message = refused(
        tmp_path,
        face_set_path,
        space={"duration": {"choice": ["4 steps", "1 steps"]}, "optim.lr": {"uniform": [0.1, 0.2]}},
    )
    assert "objective.reports: 2 of a run of 1 steps, but one every 1 steps makes 1; write 1" in message


def test_check_sweep__evaluated_on_the_training_set(tmp_path: Path, face_set_path: str) -> None:
    """Also under another path: the content counts."""
    knn = {"metric": "knn", "pairs": None}
    message = refused(tmp_path, face_set_path, objective={**knn, "identities": face_set_path})
    assert "objective.identities" in message
    assert "are the same file" in message
    copy = tmp_path / "copy" / "train.rec"
    copy.parent.mkdir()
    for ending in (".rec", ".idx"):
        source = Path(face_set_path).with_suffix(ending)
        copy.with_suffix(ending).write_bytes(source.read_bytes())
    message = refused(tmp_path, face_set_path, objective={**knn, "identities": str(copy)})
    assert "a training set, are the same set" in message


def test_check_sweep__pairs_with_images_of_the_training_set(tmp_path: Path, face_set_path: str) -> None:
    """A single image is enough."""
    faces = open_faces(face_set_path)
    image = faces.read(np.array([3])).images[0]
    write_pairs(str(tmp_path / "a.bin"), [image, *face_jpegs(19, seed=9)], [True, False] * 5)
    message = refused(tmp_path, face_set_path, objective={"pairs": str(tmp_path / "a.bin")})
    assert "a training set, share 1 of the images compared" in message


def test_check_sweep__test_set_is_the_selection_set(tmp_path: Path, face_set_path: str) -> None:
    """The same pairs under another name are found by their images."""
    message = refused(tmp_path, face_set_path, confirm={"pairs": pair_file(tmp_path, "test.bin")})
    assert "confirm.pairs" in message
    assert "a selection set, share 40 of the images" in message


def generated(path: Path, beside: str, **content: Any) -> None:
    """Write the description that the generator writes beside its files."""
    (path / beside).write_text(json.dumps(content))


def test_check_sweep__generated_identities(tmp_path: Path) -> None:
    """The same identities in other images are found by their numbers."""
    data = tmp_path / "train.rec"
    write_face_set(data)
    generated(tmp_path, "generated.json", seed=4, first_identity=0, num_identities=12)
    pairs = pair_file(tmp_path)
    identities = {"first": 10, "stop": 20, "step": 1}
    generated(tmp_path, "select.bin.json", seed=4, identities=identities)
    message = refused(tmp_path, data, objective={"pairs": pairs})
    assert "share 2 generated identities, such as 10" in message
    generated(tmp_path, "select.bin.json", seed=5, identities=identities)
    check_sweep(sweep(tmp_path, data, objective={"pairs": pairs}))


def test_check_sweep__identities_of_the_run_that_trials_start_from(tmp_path: Path, face_set_path: str) -> None:
    """Training sets of earlier runs count, however long the chain."""
    old = tmp_path / "old"
    old.mkdir()
    write_face_set(old / "train.rec", 4, 3)
    # Of the runs' folders only the configurations matter here.
    for name, start in (("lafs", "stage1"), ("stage1", None)):
        (tmp_path / name).mkdir()
        weights = None if start is None else str(tmp_path / start)
        path = face_set_path if start else str(old / "train.rec")
        config = {"data": {"path": path}, "landmarks": {"weights": weights}, "run": {}}
        config |= {"batch_size": 4, "log": {"every_steps": 1}}
        write_description(str(tmp_path / name), {"kind": "PretrainConfig", "faces": "", "config": config})
    image = open_faces(str(old / "train.rec")).read(np.array([0])).images[0]
    write_pairs(str(tmp_path / "a.bin"), [image, *face_jpegs(19, seed=9)], [True, False] * 5)
    one = sweep(
        tmp_path,
        face_set_path,
        objective={"pairs": str(tmp_path / "a.bin")},
        settings={"start.transformer": str(tmp_path / "lafs"), "start.landmarks": "untrained"},
    )
    from lafs_ray.tuning.leakage import find_leakage

    found = [*find_leakage(one)]
    assert any(f"run {tmp_path}/stage1: data.path" in line for line in found), found
