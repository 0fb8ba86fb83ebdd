from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.training.checkpoint.checkpoint_file import FORMAT, load_checkpoint, newest_checkpoint
from lafs_ray.training.checkpoint.run_description import Origin
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.monitoring.status import read_status
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import Hooks, run_local
from tests.training.faces import run, tiny

STATE = {"model": {"weight": torch.arange(2000.0)}}


def folder(tmp_path: Path, *overrides: str, fingerprint: str = "f" * 8) -> RunDir:
    return RunDir(tiny(tmp_path, "nowhere.rec", *overrides), fingerprint)


def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "debug" / "checkpoints"


def test_save__round_trip(tmp_path: Path) -> None:
    """A checkpoint gives back its tensors with step, kind, config, set and versions."""
    place = folder(tmp_path)
    assert place.latest() is None
    place.save(7, STATE, keep=2)
    content = place.latest()
    assert content is not None
    assert torch.equal(content["model"]["weight"], STATE["model"]["weight"])
    assert (content["format"], content["step"], content["faces"]) == (FORMAT, 7, "f" * 8)
    assert content["kind"] == "PretrainConfig"
    assert content["config"]["batch_size"] == 8
    assert content["versions"]["torch"] == str(torch.__version__)


def test_save__keeps_the_newest(tmp_path: Path) -> None:
    """Only the newest `keep` checkpoints stay, in numeric order beyond eight digits too."""
    place = folder(tmp_path)
    for step in (5, 40, 100, 99_999_999, 100_000_000):
        place.save(step, STATE, keep=2)
    assert place.steps() == [99_999_999, 100_000_000]
    place.claim(Origin())
    assert newest_checkpoint(place.uri) == place.checkpoint_uri(100_000_000)


def test_save__clears_what_a_lost_storage_left_half_written(tmp_path: Path) -> None:
    """The rest of a failed try goes with the next checkpoint that arrives, and nothing else."""
    place, there = folder(tmp_path), checkpoints(tmp_path)
    place.save(1, STATE, keep=2)
    (there / ".step-00000002.pt.ab12.partial").write_bytes(b"half")
    place.save(2, STATE, keep=2)
    assert sorted(path.name for path in there.iterdir()) == ["step-00000001.pt", "step-00000002.pt"]


def test_save__that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """An exception while writing leaves the checkpoint of that step, and nothing half-written."""
    place = folder(tmp_path)
    place.save(3, STATE, keep=2)
    before = (checkpoints(tmp_path) / "step-00000003.pt").read_bytes()
    with pytest.raises(Exception, match="pickle"):
        place.save(3, {"model": lambda: None}, keep=2)
    assert os.listdir(checkpoints(tmp_path)) == ["step-00000003.pt"]
    assert (checkpoints(tmp_path) / "step-00000003.pt").read_bytes() == before


def full_device(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Let writing (`write`) or syncing (`fsync`) meet a full disk, as the system reports it."""

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, no_space)


@pytest.mark.parametrize("size", [20, 200_000])
@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_save__disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, size: int) -> None:
    """A full disk, met at the first buffer or at the last, is a DataError; the name stays free."""
    place = folder(tmp_path)
    place.save(1, STATE, keep=2)
    with monkeypatch.context() as patched:
        full_device(patched, fails)
        with pytest.raises(DataError, match="disk full") as raised:
            place.save(2, {"model": {"weight": torch.zeros(size)}}, keep=2)
    assert "step-00000002.pt" in raised.value.subject
    assert os.listdir(checkpoints(tmp_path)) == ["step-00000001.pt"]
    latest = place.latest()
    assert latest is not None
    assert latest["step"] == 1


def test_save__interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a checkpoint is written stays Ctrl-C and leaves nothing half-written."""
    place = folder(tmp_path)
    place.save(1, STATE, keep=2)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.save(2, STATE, keep=2)
    assert os.listdir(checkpoints(tmp_path)) == ["step-00000001.pt"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "last block lost": content[:-4096] + bytes(4096),
        "text": b"no checkpoint",
    }[how]
    path.write_bytes(changed)


@pytest.mark.parametrize("how", ["empty", "truncated", "last block lost", "text"])
def test_latest__skips_damaged_files(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """The newest that loads counts, a damaged one is named in a warning; all damaged: refused."""
    place = folder(tmp_path)
    for step in (1, 2):
        place.save(step, STATE, keep=2)
    damage(checkpoints(tmp_path) / "step-00000002.pt", how)
    with caplog.at_level(logging.WARNING):
        latest = place.latest()
    assert latest is not None
    assert latest["step"] == 1
    assert "step-00000002.pt" in caplog.text
    damage(checkpoints(tmp_path) / "step-00000001.pt", how)
    with pytest.raises(CheckpointError, match="2 checkpoints, all damaged"):
        place.latest()


def test_save__does_not_count_a_later_damaged_file(tmp_path: Path) -> None:
    """A run that went back behind a damaged checkpoint keeps its own."""
    place = folder(tmp_path)
    for step in (10, 20):
        place.save(step, STATE, keep=2)
    damage(checkpoints(tmp_path) / "step-00000020.pt", "truncated")
    place.save(15, STATE, keep=1)
    latest = place.latest()
    assert latest is not None
    assert latest["step"] == 15


class Trap:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_load_checkpoint__with_code_in_it(tmp_path: Path) -> None:
    """A pickle that would run code is refused, and the code does not run."""
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": FORMAT, "step": 1, "trap": Trap(tmp_path / "trace")}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(str(path))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "found"), [({"format": 2}, "format 2"), ({"teacher": {}}, "format None"), ([1, 2], "something else")]
)
def test_load_checkpoint__not_of_ours(tmp_path: Path, content: Any, found: str) -> None:
    """A newer format and files of others are refused with what was found."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(str(tmp_path / "a.pt"))
    assert raised.value.found == found
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(str(tmp_path / "b.pt"))


def test_newest_checkpoint__of_a_run_without_any(tmp_path: Path) -> None:
    """A run that has not reached its first checkpoint is refused; a file is returned as it is."""
    place = folder(tmp_path)
    place.claim(Origin())
    with pytest.raises(CheckpointError, match="a run without checkpoints"):
        newest_checkpoint(place.uri)
    assert newest_checkpoint("some/file.pt") == "some/file.pt"


def test_resume__checkpoint_of_another_architecture(tmp_path: Path, face_set_path: str) -> None:
    """Weights of another width in the run's folder are refused with the file and the shapes."""
    config = tiny(tmp_path / "a", face_set_path, "duration=1 steps", "optim.warmup=0 steps")
    other = tiny(tmp_path / "b", face_set_path, "duration=1 steps", "optim.warmup=0 steps", "head.hidden_dim=48")
    for one in (config, other):
        run(one)
    name = "debug/checkpoints/step-00000001.pt"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(CheckpointError, match="step-00000001.pt") as raised:
        run(config)
    assert "48" in raised.value.found
    assert "32" in raised.value.found


def test_checkpoint__holds_plain_values_only(tmp_path: Path, face_set_path: str) -> None:
    """A checkpoint of a run loads with torch's own restricted loader and names what it holds."""
    inputs = prepare_run(tiny(tmp_path, face_set_path, "duration=1 steps", "optim.warmup=0 steps"))
    run(inputs.config)
    path = inputs.folder().checkpoint_uri(1)
    content = torch.load(io.BytesIO(Path(path).read_bytes()), weights_only=True)
    assert {"model", "method", "optimizer", "landmarks", "skipped", "step"} <= content.keys()
    assert {"teacher", "center"} <= content["method"].keys()


def test_lock__is_a_link(tmp_path: Path) -> None:
    """What a link in the lock's place points to is not truncated."""
    (tmp_path / "precious").write_text("kept")
    place = folder(tmp_path)
    Path(place.uri).mkdir(parents=True)
    (Path(place.uri) / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="a link"), place.lock():
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_run__folder_that_disappears(tmp_path: Path, face_set_path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A folder deleted during a run is complete again at the end: config.json, all reports, the last checkpoint."""
    config = tiny(tmp_path, face_set_path, "duration=6 steps", "checkpoints.every=2 steps")
    whole = run(config)
    place, hooks = (
        Path(whole.inputs.folder().uri),
        Hooks(after_write=lambda _: shutil.rmtree(place, ignore_errors=True)),
    )
    before = json.loads((place / "config.json").read_text())
    shutil.rmtree(place)
    inputs = prepare_run(config)
    run_local(inputs, hooks)
    assert "had disappeared: it is written again" in caplog.text
    # After the last write it was deleted once more: what was there is what the end of the run stored.
    assert not place.exists()
    inputs = prepare_run(config)
    run_local(inputs)
    assert json.loads((place / "config.json").read_text()) == before


def test_run__without_config_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint describes the run: the same command restores the file, another one is refused."""
    place = folder(tmp_path)
    place.claim(Origin())
    content = (Path(place.uri) / "config.json").read_bytes()
    place.save(7, STATE, keep=2)
    os.unlink(Path(place.uri) / "config.json")
    assert newest_checkpoint(place.uri) == place.checkpoint_uri(7)
    with pytest.raises(ConfigError, match="run its training command again"):
        read_status(place.uri)
    with pytest.raises(ConfigError, match="holds another run"):
        folder(tmp_path, "optim.lr=9").claim(Origin())
    assert not (Path(place.uri) / "config.json").exists()
    folder(tmp_path).claim(Origin())
    assert "config.json is missing: it is written again" in caplog.text
    assert (Path(place.uri) / "config.json").read_bytes() == content
    place.restore(Origin())
    os.unlink(Path(place.uri) / "config.json")
    place.restore(Origin())
    assert (Path(place.uri) / "config.json").read_bytes() == content
