"""Claims of a run's folder: who may continue what, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.checkpoint.run_description import Origin
from lafs_ray.training.checkpoint.run_dir import RunDir
from tests.training.checkpoint.test_run_dir import folder
from tests.training.faces import tiny


@pytest.mark.parametrize("storage_folder", ["file/runs", "/proc/runs"])
def test_claim__where_nothing_can_be_written(tmp_path: Path, storage_folder: str) -> None:
    """A path that cannot hold a run is refused before anything starts."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError) as raised:
        RunDir(tiny(tmp_path / storage_folder, "nowhere.rec"), "f").claim(Origin())
    assert str(tmp_path / storage_folder) in raised.value.subject


def test_claim__without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No permission to write is reported as such (root may write anywhere, hence the patch)."""

    def refused(path: str, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "makedirs", refused)
    with pytest.raises(DataError, match="no permission to write"):
        folder(tmp_path).claim(Origin())


def test_claim__again_with_the_same_settings(tmp_path: Path) -> None:
    """The folder of this run is taken again, with settings that do not change the result."""
    folder(tmp_path).claim(Origin())
    folder(
        tmp_path,
        "compute.workers=2",
        "compute.device=cuda",
        "ingest.actors_per_worker=3",
        "log.every_steps=7",
        "checkpoints.every=1 steps",
        "checkpoints.keep=5",
        "data.path=elsewhere.rec",
        "data.max_bad_records=3",
    ).claim(Origin())
    written = json.loads((tmp_path / "debug" / "config.json").read_text())
    assert written["config"]["log"]["every_steps"] == 7


def test_claim__of_a_run_from_before_there_was_distillation(tmp_path: Path) -> None:
    """It continues, and not as a distillation."""
    folder(tmp_path).claim(Origin())
    path = tmp_path / "debug" / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["distillation"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"distillation\.teacher: None -> \S+/any"):
        folder(tmp_path, f"distillation.teacher={tmp_path / 'any'}").check(Origin())
    folder(tmp_path).claim(Origin())


def test_claim__of_a_run_from_before_there_were_neighbors(tmp_path: Path) -> None:
    """It continues, and not with pairs."""
    folder(tmp_path).claim(Origin())
    path = tmp_path / "debug" / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["neighbors"], content["neighbors"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"neighbors\.pairs: the file holds other pairs now \(None -> abc\)"):
        folder(tmp_path, "neighbors.pairs=any").check(Origin(neighbors="abc"))
    folder(tmp_path).claim(Origin())


@pytest.mark.parametrize(("section", "key", "value"), [("views", "opposite_flips", True), ("dino", "koleo", 0.5)])
def test_claim__of_a_run_from_before_there_was_a_setting(tmp_path: Path, section: str, key: str, value: object) -> None:
    """It continues, and not with it."""
    folder(tmp_path).claim(Origin())
    path = tmp_path / "debug" / "config.json"
    content = json.loads(path.read_text())
    del content["config"][section][key]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: None -> {value}"):
        folder(tmp_path, f"{section}.{key}={json.dumps(value)}").check(Origin())
    folder(tmp_path).claim(Origin())


def test_claim__after_a_kill_in_the_first_claim(tmp_path: Path) -> None:
    """What a killed process left half-written does not make the folder a foreign one."""
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / ".config.json.0123456789ab.partial").write_text("{")
    folder(tmp_path).claim(Origin())


def test_claim__names_every_difference(tmp_path: Path) -> None:
    """Another configuration is refused; each setting is named with its old and new value."""
    folder(tmp_path).claim(Origin())
    other = folder(tmp_path, "optim.lr=1e-3", "run.seed=4", "views.flip=0.1", "data.chunk_records=9")
    with pytest.raises(ConfigError) as raised:
        other.claim(Origin())
    message = str(raised.value)
    for line in (
        "optim.lr: 0.0005 -> 0.001",
        "run.seed: 0 -> 4",
        "views.flip: 0.5 -> 0.1",
        "data.chunk_records: 4 -> 9",
    ):
        assert line in message
    assert message.count("->") == 5, "the four, and the heading that explains the arrow"


def test_claim__other_faces_or_landmarks_or_job(tmp_path: Path) -> None:
    """Another set, other landmark weights and another kind of job are differences, too."""
    folder(tmp_path).claim(Origin("a" * 8))
    with pytest.raises(ConfigError, match=r"another set of faces \(ffffffff -> gggggggg\)"):
        folder(tmp_path, fingerprint="g" * 8).claim(Origin("a" * 8))
    with pytest.raises(ConfigError, match=r"landmarks.weights: .*\(aaaaaaaa -> bbbbbbbb\)"):
        folder(tmp_path).claim(Origin("b" * 8))
    supervised = tiny(tmp_path, "nowhere.rec", "run.name=debug", kind=FinetuneConfig)
    with pytest.raises(ConfigError, match="kind: PretrainConfig -> FinetuneConfig"):
        RunDir(supervised, "f" * 8).claim(Origin())


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 3}', "\xff"])
def test_claim__foreign_config(tmp_path: Path, content: str) -> None:
    """A config.json of something else is refused in words and left as it is."""
    (tmp_path / "debug").mkdir()
    path = tmp_path / "debug" / "config.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match="config.json that is not of a run"):
        folder(tmp_path).claim(Origin())
    assert path.read_text(encoding="latin-1") == content


def test_claim__foreign_files(tmp_path: Path) -> None:
    """A folder with foreign files is refused and gets no file of ours."""
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="files, but no config.json"):
        folder(tmp_path).claim(Origin())
    assert os.listdir(tmp_path / "debug") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("run.name=" + "r" * 256, "a name of 256 bytes"),
        ("run.storage=/tmp/" + "ü" * 130, "a name of 260 bytes"),
        ("run.storage=/tmp" + "/deep" * 900, "a path of 4"),
    ],
    ids=["name", "storage", "path"],
)
def test_check__names_that_no_file_system_takes(tmp_path: Path, override: str, found: str) -> None:
    """A dry run refuses them as well; the longest name that is allowed can be written."""
    with pytest.raises(DataError, match=found):
        folder(tmp_path, override).check(Origin())
    longest = folder(tmp_path, f"run.name={'r' * 255}")
    longest.claim(Origin())
    assert longest.check(Origin())["faces"] == "f" * 8
