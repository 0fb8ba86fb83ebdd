"""One trial without Ray: its reports, and how it resumes after it was stopped, killed or copied."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.loader import resolve
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.report.session import ReportRequest, report_page
from lafs_ray.training.checkpoint.metrics_log import as_line
from lafs_ray.training.prepare import RunInputs
from lafs_ray.tuning.config import Objective, SweepConfig
from lafs_ray.tuning.objective import objective_value
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.sweep_dir import SweepDir, read_settings
from lafs_ray.tuning.trial import Donor, TrialSpec, run_trial, train_here
from lafs_ray.tuning.trial_config import Sweep, read_sweep
from tests.training.faces import FINETUNE, PRETRAIN, ROOT
from tests.tuning.sweeps import PRETRAIN_SETTINGS, SETTINGS, sweep, tree

LR = {"optim.lr": 1e-3}


class Stop(BaseException):
    """Ends a trial from outside."""


class Recorder:
    """Records reports; ends the trial at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.reports: list[Report] = []
        self.replayed: list[int] = []
        self._stop_at = stop_at

    def __call__(self, report: Report, replayed: bool) -> None:
        if replayed:
            self.replayed.append(report.report)
            return
        self.reports.append(report)
        if report.report == self._stop_at:
            raise Stop

    @property
    def values(self) -> list[tuple[int, int, int, float, float]]:
        """Reports without times."""
        return [(r.report, r.seed, r.step, r.value, r.objective) for r in self.reports]


def spec(one: Sweep, number: int = 0, attempt: str = "a", **changes: Any) -> TrialSpec:
    whole = TrialSpec(one, SweepDir(one).trial(number), LR, one.config.objective, attempt)
    if whole.dir.read() is None:
        whole.dir.write(Trial(number, LR))
    return replace(whole, **changes)


def steps_trained(steps: list[int]) -> Callable[[RunInputs, Callable[[int], None]], None]:
    """Return a training function that records the step it resumes from."""

    def train(inputs: RunInputs, on_checkpoint: Callable[[int], None]) -> None:
        steps.append(max(inputs.folder().steps(), default=0))
        train_here(inputs, on_checkpoint)

    return train


def test_trial__of_two_seeds(tmp_path: Path, face_set_path: str) -> None:
    """Seed 0 is evaluated halfway and at its end, seed 1 at its end; the objective is their mean, and each value is the
    checkpoint's own."""
    one = sweep(tmp_path, face_set_path, objective={"seeds": [0, 1]})
    recorder = Recorder()
    run_trial(spec(one), recorder, train_here)
    assert [v[:3] for v in recorder.values] == [(1, 0, 2), (2, 0, 4), (3, 1, 4)]
    values = [report.value for report in recorder.reports]
    assert [report.objective for report in recorder.reports] == [values[0], values[1], (values[1] + values[2]) / 2]
    folder = SweepDir(one).trial(0)
    record = folder.read()
    assert record is not None
    assert record.status == "finished"
    objective = one.config.objective
    for seed, value in ((0, values[1]), (1, values[2])):
        checkpoints = Path(folder.uri) / f"s{seed}" / "checkpoints"
        # Earlier ones are deleted.
        assert [path.name for path in checkpoints.iterdir()] == ["step-00000004.pt"]
        uri = str(checkpoints / "step-00000004.pt")
        assert objective_value(uri, objective, "cpu") == value


def test_trial__killed_and_continued(tmp_path: Path, face_set_path: str) -> None:
    """It resumes from its checkpoint, reports again what it had reported, and ends with the values of an uninterrupted
    trial; once finished it trains no more."""
    (tmp_path / "b").mkdir()
    whole = sweep(tmp_path / "b", face_set_path, objective={"seeds": [0, 1]})
    uninterrupted = Recorder()
    run_trial(spec(whole), uninterrupted, train_here)
    one = sweep(tmp_path, face_set_path, objective={"seeds": [0, 1]})
    first = Recorder(stop_at=1)
    with pytest.raises(Stop):
        run_trial(spec(one), first, train_here)
    steps: list[int] = []
    second = Recorder()
    run_trial(spec(one, attempt="b"), second, steps_trained(steps))
    assert second.replayed == [1]
    assert steps == [2, 0]
    assert first.values + second.values == uninterrupted.values
    third = Recorder()
    run_trial(spec(one, attempt="c"), third, steps_trained(steps))
    assert (third.replayed, third.reports, steps) == ([1, 2, 3], [], [2, 0])


def test_trial__killed_between_checkpoint_and_report(tmp_path: Path, face_set_path: str) -> None:
    """A checkpoint without a report is evaluated first; no step is trained twice."""
    one = sweep(tmp_path, face_set_path)

    def die(inputs: RunInputs, on_checkpoint: Callable[[int], None]) -> None:
        def at_checkpoint(step: int) -> None:
            raise Stop

        train_here(inputs, at_checkpoint)

    with pytest.raises(Stop):
        run_trial(spec(one), Recorder(), die)
    steps: list[int] = []
    recorder = Recorder()
    run_trial(spec(one, attempt="b"), recorder, steps_trained(steps))
    assert [v[:3] for v in recorder.values] == [(1, 0, 2), (2, 0, 4)]
    assert steps == [2]


def test_trial__restarted_within_a_start_of_the_sweep(tmp_path: Path, face_set_path: str) -> None:
    """A process that Tune restarts reports nothing twice."""
    one = sweep(tmp_path, face_set_path)
    with pytest.raises(Stop):
        run_trial(spec(one), Recorder(stop_at=1), train_here)
    recorder = Recorder()
    run_trial(spec(one), recorder, train_here)
    assert (recorder.replayed, [v[0] for v in recorder.values]) == ([], [2])


def test_trial__continues_from_a_donor(tmp_path: Path, face_set_path: str) -> None:
    """A member continues from the donor's weights and step with its new settings; a restart resumes from the copy."""
    changes: dict[str, Any] = {"scheduler": {"kind": "pbt"}, "budget": {"trials": 4}, "objective": {"reports": 4}}
    one = sweep(tmp_path, face_set_path, **changes)
    good, bad = spec(one, 0), spec(one, 1)
    run_trial(good, Recorder(), train_here)
    with pytest.raises(Stop):
        run_trial(bad, Recorder(stop_at=2), train_here)
    moved = replace(bad, settings={"optim.lr": 5e-3})
    steps: list[int] = []
    recorder = Recorder(stop_at=3)
    with pytest.raises(Stop):
        run_trial(moved, recorder, steps_trained(steps), Donor(good.dir.uri, 2))
    assert steps == [2]
    assert [v[:3] for v in recorder.values] == [(3, 0, 3)]
    progress = bad.dir.read()
    assert progress is not None
    assert (progress.settings, progress.generation) == ({"optim.lr": 5e-3}, 1)
    last = Recorder()
    run_trial(replace(moved, attempt="b", replay=False), last, steps_trained(steps))
    assert (steps, [v[:3] for v in last.values]) == ([2, 3], [(4, 0, 4)])
    made = bad.dir.read()
    assert made is not None
    assert [(r.generation, r.report) for r in made.reports] == [(0, 1), (0, 2), (1, 3), (1, 4)]


def test_trial__pretraining_evaluated_after_finetuning(tmp_path: Path, face_set_path: str) -> None:
    """Each report finetunes the trial's checkpoint, and no finetuning run is left behind."""
    parts = {"task": "pretrain", "base": str(ROOT / PRETRAIN), "space": {"landmarks.noise_px": {"uniform": [0, 5]}}}
    settings = {**PRETRAIN_SETTINGS, "data.path": face_set_path}
    finetune = {"base": str(ROOT / FINETUNE), "settings": {**SETTINGS, "data.path": face_set_path, "optim.lr": 3e-3}}
    config = {**parts, "settings": settings, "finetune": finetune}
    whole = {**tree(tmp_path, face_set_path), **config}
    one = read_sweep(resolve(SweepConfig, whole, "sweep"))
    recorder = Recorder()
    run_trial(replace(spec(one), settings={"landmarks.noise_px": 1.0}), recorder, train_here)
    assert [v[:3] for v in recorder.values] == [(1, 0, 2), (2, 0, 4)]
    left = sorted(path.name for path in Path(SweepDir(one).trial(0).uri).iterdir())
    assert left == ["s0", "trial.json"]


def test_objective_value__a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """Settings that diverge are an error that names the checkpoint and the loss."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    line = {"step": 4, "epoch": 0, "loss": math.nan, "lr": 0.1, "images_per_s": 1.0, "wait_share": 0.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(as_line(line))
    uri = str(tmp_path / "run" / "checkpoints" / "step-00000004.pt")
    with pytest.raises(DataError, match="no finite loss of this step") as caught:
        objective_value(uri, Objective(metric="loss"), "cpu")
    assert "narrow the space" in caught.value.fix


@pytest.mark.parametrize("name", ["trials/0000/trial.json", "spent.json", "sweep.json"])
@pytest.mark.parametrize(
    "content",
    ["5", "[]", '{"seconds": NaN}', '{"number": 0, "settings": 5}', "[" * 100_000, "", '{"reports": [{"value": "a"}]}'],
)
def test_sweep_dir__files_of_another_shape(tmp_path: Path, face_set_path: str, name: str, content: str) -> None:
    """A file of a sweep that is not as the sweep wrote it is named, with what to do."""
    folder = SweepDir(sweep(tmp_path, face_set_path))
    path = Path(folder.uri) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    reads = {"spent.json": folder.read_spent_s, "sweep.json": lambda: folder.claim({})}
    with pytest.raises((DataError, ConfigError), match=f"{name}|holds another sweep"):
        reads.get(name, folder.trial(0).read)()
    assert path.read_text() == content


def test_sweep_dir__another_sweep_is_refused(tmp_path: Path, face_set_path: str) -> None:
    """All differences are listed; the budget may change."""
    one = sweep(tmp_path, face_set_path)
    SweepDir(one).claim({"trials": "f"})
    SweepDir(sweep(tmp_path, face_set_path, budget={"trials": 9})).claim({"trials": "f"})
    other = sweep(
        tmp_path, face_set_path, space={"optim.lr": {"log_uniform": [1e-4, 1e-1]}}, settings={"optim.weight_decay": 0.5}
    )
    with pytest.raises(ConfigError, match="holds another sweep") as caught:
        SweepDir(other).claim({"trials": "g"})
    assert "space.optim.lr.high: 0.01 -> 0.1" in caught.value.found
    assert "optim.weight_decay: 0.1 -> 0.5" in caught.value.found
    assert "faces.trials: f -> g" in caught.value.found


def test_sweep_dir__unknown_files_are_refused(tmp_path: Path, face_set_path: str) -> None:
    (tmp_path / "sweeps" / "sweep").mkdir(parents=True)
    (tmp_path / "sweeps" / "sweep" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no sweep.json"):
        SweepDir(sweep(tmp_path, face_set_path)).claim({})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"searcher": {"kind": "grid"}, "space": {"optim.lr": {"choice": [1e-3, 3e-4]}}},
        {
            "searcher": {"kind": "tpe", "startup_trials": 4},
            "scheduler": {"kind": "median", "grace_period": 2},
            "space": {
                "mixup.probability": {"choice": [0.0, 0.2]},
                "mixup.alpha": {"uniform": [0.1, 1.0], "when": {"mixup.probability": [0.2]}},
                "batch_size": {"integer": [4, 8]},
            },
        },
        {"scheduler": {"kind": "asha", "reduction_factor": 2}},
    ],
    ids=["random", "grid", "tpe and median", "asha"],
)
def test_sweep_json__is_read_as_it_was_written(tmp_path: Path, face_set_path: str, changes: dict[str, Any]) -> None:
    """The settings of a sweep's folder, of any kind, are those that it was started with, and a report shows them."""
    written = sweep(tmp_path, face_set_path, **changes)
    folder = SweepDir(written)
    folder.claim({})
    found, default = read_settings(folder.uri)
    kept = {"budget", "confirm", "storage"}
    assert found.model_dump(exclude=kept) == written.config.model_dump(exclude=kept)
    assert default == json.loads(written.default.model_dump_json())
    page = report_page(ReportRequest(runs=[folder.uri])).decode()
    assert found.searcher.kind in page
    assert "No trial has a report." in page
