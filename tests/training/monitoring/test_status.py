from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.metrics_log import MetricsLog, read_metrics
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


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("metrics.jsonl", "5", "not an object"),
        ("metrics.jsonl", '{"epoch": 1}', "step: Field required"),
        ("metrics.jsonl", '{"step": 7, "epoch": 1, "loss": NaN, "lr": 0, "images_per_s": 1, "wait_share": 0}', "loss"),
        ("metrics.jsonl", '{"step": 7, "epoch": 1, "loss": 1, "lr": 0, "images_per_s": 0, "wait_share": 0}', "images"),
        ("metrics.jsonl", '{"step": true}', "step"),
        ("metrics.jsonl", "[" * 100_000, "nested too deeply"),
        ("warnings.jsonl", '{"step": 1, "kind": 5, "text": "x"}', "kind"),
        ("warnings.jsonl", '{"step": 1}', "kind"),
        ("eval.jsonl", '{"step": 6, "pair_accuracy": "high"}', "pair_accuracy"),
        ("eval.jsonl", '{"step": 6, "pair_accuracy": 1e999}', "pair_accuracy"),
        ("eval.jsonl", "\\x1b]0;owned\\x07", "Expecting value"),
    ],
)
def test_read_status__lines_of_another_shape(stopped: Path, name: str, line: str, reason: str) -> None:
    """They are named and left out; everything else is as without them, and JSON stays JSON."""
    whole, path = read_status(str(stopped), now=0.0), stopped / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + line.encode() + b"\n" + b'{"step": 0, "kin')
    try:
        status = read_status(str(stopped), now=0.0)
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    (text,) = status.left_out
    assert text.startswith(f"{name}, line ")
    assert reason in text
    assert replace(status, left_out=[]) == whole
    assert f"left out    {name}, line" in str(status)
    json.loads(status.as_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": 5}, "config: not an object"),
        ({"length": [1]}, "length: not an object"),
        ({"length": {"total_steps": "12"}}, "length.total_steps"),
        ({"length": None}, "without the run's length"),
        ({"kind": 5}, "kind"),
    ],
)
def test_read_status__config_of_another_shape(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """config.json that is not of a run is refused by the place that is wrong."""
    config = {"data": {"path": "a.rec"}, "batch_size": 8, "log": {"every_steps": 1}, "landmarks": {}, "run": {}}
    sound = {"kind": "PretrainConfig", "faces": "f", "config": config, "length": {"total_steps": 12}}
    (tmp_path / "config.json").write_text(json.dumps(sound))
    assert read_status(str(tmp_path)).state == "not started"
    for text in (json.dumps({**sound, **change}), "[" * 100_000, "5", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=reason if text[0] == "{" else "not of a run") as caught:
            read_status(str(tmp_path))
        assert len(str(caught.value)) < 1000


def test_read_metrics__one_wrong_line_among_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only that line is left out, with a warning; numbers that JSON does not have are stored as null."""
    log = MetricsLog(str(tmp_path / "log.jsonl"), 0)
    log.write({"step": 1, "kl": math.inf})
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + 'oops\n{"step": 2}\n')
    assert read_metrics(str(path)) == [{"step": 1, "kl": None}, {"step": 2}]
    assert "log.jsonl, line 2: Expecting value" in caplog.text
