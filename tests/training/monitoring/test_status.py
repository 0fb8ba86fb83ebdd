from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import ConfigError
from lafs_ray.training.monitoring.status import read_status
from lafs_ray.training.prepare import prepare_run
from tests.training.faces import NO_IMAGE, run, tiny, write_face_set


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that was killed in its seventh, on a set with a damaged record."""
    folder = tmp_path_factory.mktemp("runs")
    write_face_set(folder / "a.rec", 4, 10, replaced={5: NO_IMAGE})
    settings = ["duration=8 steps", "checkpoints.every=3 steps", "run.name=one"]
    run(tiny(folder, folder / "a.rec", *settings), killed_at=6)
    return folder / "one"


def test_read_status__of_a_running_run(stopped: Path) -> None:
    """Step, metrics, speed, newest checkpoint and damaged records of a run under way."""
    status = read_status(str(stopped))
    assert (status.kind, status.state) == ("pretraining", "running")
    assert (status.step, status.total_steps, status.checkpoint_step) == (6, 8, 6)
    assert status.checkpoint == str(stopped / "checkpoints" / "step-00000006.pt")
    assert status.last is not None
    assert status.left_s == pytest.approx(2 * 8 / status.last["images_per_s"])
    assert [line.partition(": found")[0] for line in status.damaged] == [f"{stopped.parent}/a.rec, record 6"]
    text = str(status)
    for words in ("running (last report 0:00:", "6/8, epoch 1\n", "loss ", "images/s, data wait "):
        assert words in text
    assert f"checkpoint  {stopped}/checkpoints/step-00000006.pt" in text
    assert "damaged     1 record\n" in text


def test_read_status__of_a_run_that_is_silent(stopped: Path) -> None:
    """No report for far longer than the interval: the run has stopped, or hangs."""
    status = read_status(str(stopped), now=time.time() + 7200)
    assert status.state == "silent"
    assert "2:00:" in str(status)
    assert "left  " not in str(status)


def test_read_status__warnings_evaluation_and_a_bad_step(stopped: Path) -> None:
    """Warnings, the last evaluation and a non-finite step are shown."""
    noted = stopped / "warnings.jsonl"
    before = noted.read_text()
    noted.write_text(before + '{"step": 4, "kind": "input bottleneck", "text": "waits"}\n')
    (stopped / "eval.jsonl").write_text('{"step": 6, "pair_accuracy": 0.75, "eval_s": 2}\n')
    bad = stopped / "not-finite-00000007.json"
    bad.write_text("{}")
    try:
        status = read_status(str(stopped))
        assert (status.state, status.bad_step) == ("not finite", str(bad))
        text = str(status)
        assert "warning     step 4, input bottleneck: waits" in text
        assert "evaluation  of step 6: pair_accuracy 0.7500\n" in text
        bad.rename(stopped / "not-finite-00000005.json")
        assert read_status(str(stopped)).state == "running", "the run has got beyond step 5"
    finally:
        noted.write_text(before)
        for name in ("eval.jsonl", "not-finite-00000005.json"):
            (stopped / name).unlink()


def test_read_status__not_started_and_finished(tmp_path: Path, face_set_path: str) -> None:
    """Before the first report, and after the last step, however long ago."""
    settings = ["duration=1 steps", "optim.warmup=0 steps"]
    config = tiny(tmp_path, face_set_path, *settings, kind=FinetuneConfig)
    prepare_run(config)
    folder = str(tmp_path / "part_fvit")
    status = read_status(folder)
    assert (status.kind, status.state, status.step) == ("supervised", "not started", 0)
    assert "checkpoint  none yet" in str(status)
    run(config)
    status = read_status(folder, now=time.time() + 1e6)
    assert (status.state, status.step, status.total_steps) == ("finished", 1, 1)


def test_read_status__as_json_and_by_uri(stopped: Path) -> None:
    """Programs get everything; a URI is as good as a path."""
    plain = json.loads(read_status(str(stopped), now=0).as_json())
    by_uri = json.loads(read_status(stopped.as_uri(), now=0).as_json())
    assert plain["last"]["step"] == 6
    assert by_uri["last"] == plain["last"]
    assert by_uri["checkpoint"] == f"{stopped.as_uri()}/checkpoints/step-00000006.pt"


def test_read_status__what_is_no_run(stopped: Path, tmp_path: Path) -> None:
    """Each wrong path is refused with what it is; a folder of runs names them."""
    with pytest.raises(ConfigError, match="no such folder"):
        read_status(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="a file"):
        read_status(str(stopped / "config.json"))
    with pytest.raises(ConfigError) as raised:
        read_status(str(stopped.parent))
    assert raised.value.fix == f"give one of the runs in it: {stopped}"
    os.mkdir(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not of a run"):
        read_status(str(tmp_path / "other"))
