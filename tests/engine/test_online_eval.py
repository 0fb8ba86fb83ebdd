"""Online evaluation: of which checkpoints, how often, and failures."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.cli.train import launch
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.engine.online_eval import OnlineEvaluator, evaluate_checkpoint
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.prepare import RunInputs, prepare_run
from tests.training.faces import face_jpegs, run, tiny, without_times, write_face_set

EVERY_STEP = ["duration=5 steps", "checkpoints.every=1 steps", "checkpoints.keep=9"]


@pytest.fixture(scope="module")
def online_eval(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of an evaluation on ten pairs and four identities, every second step."""
    folder = tmp_path_factory.mktemp("online_eval")
    write_pairs(str(folder / "pairs.bin"), face_jpegs(20, seed=5), [True, False] * 5)
    write_face_set(folder / "val.rec", 4, 3)
    files = [f"online_eval.pairs={folder}/pairs.bin", f"online_eval.identities={folder}/val.rec"]
    return [*files, "online_eval.every=2 steps"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(str(folder / "debug" / "eval.jsonl"))


def test_launch__debug_run_with_online_eval(
    tmp_path: Path, face_set_path: str, online_eval: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second step and the last are evaluated; the metrics are the checkpoint's, the run is bit by bit the one
    without evaluation, and starting it again adds no line."""
    config = tiny(tmp_path / "a", face_set_path, *EVERY_STEP, *online_eval)
    launch(config)
    found = lines(tmp_path / "a")
    assert [line["step"] for line in found] == [2, 4, 5]
    uri = str(tmp_path / "a" / "debug" / "checkpoints" / "step-00000004.pt")
    expected = evaluate_checkpoint(uri, config.online_eval, "cpu")
    assert {"pair_accuracy", "pair_auc_centered", "identity_accuracy"} <= expected.keys()
    assert {name: v for name, v in found[1].items() if name not in ("step", "eval_s")} == {
        name: v for name, v in expected.items() if name != "eval_s"
    }
    printed = capsys.readouterr().out
    assert f"evaluation of step 4: pair_accuracy {expected['pair_accuracy']:.4f}" in printed
    plain = run(tiny(tmp_path / "b", face_set_path, *EVERY_STEP))
    metrics = read_metrics(str(tmp_path / "a" / "debug" / "metrics.jsonl"))
    assert [without_times(line) for line in metrics] == plain.exact
    launch(config)
    assert lines(tmp_path / "a") == found


def test_launch__online_eval_added_to_a_finished_run(
    tmp_path: Path, face_set_path: str, online_eval: list[str]
) -> None:
    """The section may change when a run is continued: its last checkpoint is evaluated then."""
    launch(tiny(tmp_path, face_set_path, *EVERY_STEP))
    assert not (tmp_path / "debug" / "eval.jsonl").exists()
    launch(tiny(tmp_path, face_set_path, *EVERY_STEP, *online_eval))
    assert [line["step"] for line in lines(tmp_path)] == [5]


@pytest.mark.parametrize("key", ["online_eval.pairs", "online_eval.identities"])
def test_launch__missing_file(tmp_path: Path, face_set_path: str, key: str) -> None:
    """A file that is not there is found before the run has a folder."""
    with pytest.raises(DataError, match="no such file"):
        launch(tiny(tmp_path / "runs", face_set_path, f"{key}={tmp_path}/none.rec"))
    assert not (tmp_path / "runs").exists()


def test_launch__pair_file_with_an_image_of_another_size(tmp_path: Path, face_set_path: str) -> None:
    """So is one whose last image would fail when the first checkpoint is evaluated."""
    images = [*face_jpegs(19), *face_jpegs(1, size=(96, 96))]
    write_pairs(str(tmp_path / "a.bin"), images, [True] * 10)
    with pytest.raises(DataError, match="image 19 of pair 9\n.*96x96"):
        launch(tiny(tmp_path / "runs", face_set_path, f"online_eval.pairs={tmp_path}/a.bin"))
    assert not (tmp_path / "runs").exists()


def test_evaluator__distance_of_zero(tmp_path: Path, face_set_path: str) -> None:
    """An interval of zero is refused."""
    with pytest.raises(ConfigError, match=r"online_eval.every: must be more than 0"):
        tiny(tmp_path, face_set_path, "online_eval.every=0 steps")


class Slow:
    """A `StartEvaluation` whose results the test sets."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.futures: list[Future[dict[str, float]]] = []

    def __call__(self, uri: str) -> Future[dict[str, float]]:
        self.started.append(uri.rpartition("-")[2])
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def inputs(tmp_path: Path, face_set_path: str, online_eval: list[str]) -> RunInputs:
    settings = ["duration=12 steps", "checkpoints.every=2 steps", *online_eval, "online_eval.wait_s=0"]
    return prepare_run(tiny(tmp_path, face_set_path, *settings, kind=PretrainConfig))


def test_evaluator__one_at_a_time(inputs: RunInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While one runs, others are skipped and logged; the last one comes at the end of the run."""
    caplog.set_level(logging.INFO, "lafs_ray")
    starter = Slow()
    evaluator = OnlineEvaluator(inputs, starter)
    for step in (2, 4, 12):
        evaluator.saved(step)
    assert starter.started == ["00000002.pt"]
    assert caplog.messages == ["evaluation of step 4 skipped: that of step 2 is still running"]
    starter.futures[0].set_result({"pair_accuracy": 0.75})
    evaluator.finish()
    assert starter.started == ["00000002.pt", "00000012.pt"]
    assert caplog.messages[1] == "evaluation of step 2: pair_accuracy 0.7500"
    assert caplog.messages[2].startswith("evaluation of step 12 abandoned: not finished after 0 s (online_eval.wait_s)")
    assert lines(tmp_path) == [{"step": 2, "pair_accuracy": 0.75}]


def test_evaluator__failure(inputs: RunInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failed evaluation is logged with its reason; the next one starts, nothing is raised."""
    starter = Slow()
    evaluator = OnlineEvaluator(inputs, starter)
    evaluator.saved(2)
    starter.futures[0].set_exception(DataError("a.bin", found="nothing", expected="pairs", fix="copy it again"))
    evaluator.saved(4)
    starter.futures[1].set_exception(ZeroDivisionError("oh"))
    evaluator.saved(6)
    assert caplog.messages[0].startswith("evaluation of step 2 failed: a.bin\n  found:    nothing")
    assert caplog.messages[1] == "evaluation of step 4 failed: ZeroDivisionError('oh')"
    assert len(starter.started) == 3
    assert lines(tmp_path) == []


def test_evaluator__continued_run(inputs: RunInputs, tmp_path: Path) -> None:
    """A new process repeats no line, drops those of lost steps and evaluates what was missing."""
    starter: Slow = Slow()
    evaluator = OnlineEvaluator(inputs, starter)
    for step in (2, 4, 6):
        inputs.folder().save(step, {}, keep=9)
        evaluator.saved(step)
        starter.futures[-1].set_result({"pair_accuracy": step / 10})
        evaluator.collect()
    (tmp_path / "debug" / "checkpoints" / "step-00000006.pt").unlink()
    again = Slow()
    evaluator = OnlineEvaluator(inputs, again)
    evaluator.catch_up()
    assert again.started == [], "step 4 has its line"
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    evaluator.saved(6)
    assert again.started == ["00000006.pt"]
    inputs.folder().save(6, {}, keep=9)
    third = Slow()
    OnlineEvaluator(inputs, third).catch_up()
    assert third.started == ["00000006.pt"], "the second process ended before its evaluation"


def test_evaluator__distance_between_checkpoints(tmp_path: Path, face_set_path: str, online_eval: list[str]) -> None:
    """The first checkpoint at or after each multiple of online_eval.every is evaluated."""
    settings = ["duration=20 steps", "checkpoints.every=3 steps", *online_eval, "online_eval.every=5 steps"]
    starter = Slow()
    evaluator = OnlineEvaluator(prepare_run(tiny(tmp_path, face_set_path, *settings)), starter)
    for step in (3, 6, 9, 12, 15, 18, 20):
        evaluator.saved(step)
        if not starter.futures[-1:] or starter.futures[-1].done():
            continue
        starter.futures[-1].set_result({})
    assert [name[6:8] for name in starter.started] == ["06", "12", "15", "20"]
