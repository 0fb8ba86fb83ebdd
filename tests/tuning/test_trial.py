"""One trial without Ray: its reports, and what it does after it was stopped, killed or copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.config.loader import resolve
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.prepare import RunInputs
from lafs_ray.tuning.config import Objective, SweepConfig
from lafs_ray.tuning.objective import judge
from lafs_ray.tuning.results import Report
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import Copy, Task, run_trial, train_here
from lafs_ray.tuning.trial_config import Sweep, read_sweep
from tests.training.faces import FINETUNE, PRETRAIN, ROOT
from tests.tuning.sweeps import PRETRAIN_SETTINGS, SETTINGS, sweep, tree

LR = {"optim.lr": 1e-3}


class Stop(BaseException):
    """What ends a trial from outside."""


class Told:
    """Keeps reports; ends the trial at one of them."""

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
        """Everything but the seconds."""
        return [(r.report, r.seed, r.step, r.value, r.objective) for r in self.reports]


def task(one: Sweep, number: int = 0, attempt: str = "a", **changes: Any) -> Task:
    objective = one.config.objective
    parts = (objective.seeds, objective.reports, objective, objective.metric, attempt)
    whole = Task(one, SweepDir(one).trial(number), LR, *parts)
    whole.folder.write_settings(LR)
    return replace(whole, **changes)


def steps_trained(steps: list[int]) -> Callable[[RunInputs, Callable[[int], None]], None]:
    """Training that notes at which step it began."""

    def train(inputs: RunInputs, saved: Callable[[int], None]) -> None:
        steps.append(max(inputs.folder().steps(), default=0))
        train_here(inputs, saved)

    return train


def test_trial__of_two_seeds(tmp_path: Path, face_set_path: str) -> None:
    """Seed 0 is judged half-way and at its end, seed 1 at its end; the objective is their mean, and
    each figure is the checkpoint's own."""
    one = sweep(tmp_path, face_set_path, objective={"seeds": [0, 1]})
    told = Told()
    run_trial(task(one), told, train_here)
    assert [v[:3] for v in told.values] == [(1, 0, 2), (2, 0, 4), (3, 1, 4)]
    values = [report.value for report in told.reports]
    assert [report.objective for report in told.reports] == [
        values[0],
        values[1],
        (values[1] + values[2]) / 2,
    ]
    folder = SweepDir(one).trial(0)
    assert folder.read_outcome() == ("finished", "")
    objective = one.config.objective
    for seed, value in ((0, values[1]), (1, values[2])):
        checkpoints = Path(folder.uri) / f"s{seed}" / "checkpoints"
        # Those judged on the way are gone.
        assert [path.name for path in checkpoints.iterdir()] == ["step-00000004.pt"]
        uri = str(checkpoints / "step-00000004.pt")
        figures = {"far": 0.01, "centered": False, "device": "cpu"}
        assert judge(uri, objective, "pair_accuracy", **figures) == value


def test_trial__killed_and_continued(tmp_path: Path, face_set_path: str) -> None:
    """It goes on at its checkpoint, tells the scheduler what it knew, and ends with the figures of
    a trial that nobody ended; once finished it trains no more."""
    (tmp_path / "b").mkdir()
    whole = sweep(tmp_path / "b", face_set_path, objective={"seeds": [0, 1]})
    uninterrupted = Told()
    run_trial(task(whole), uninterrupted, train_here)
    one = sweep(tmp_path, face_set_path, objective={"seeds": [0, 1]})
    first = Told(stop_at=1)
    with pytest.raises(Stop):
        run_trial(task(one), first, train_here)
    steps: list[int] = []
    second = Told()
    run_trial(task(one, attempt="b"), second, steps_trained(steps))
    assert second.replayed == [1]
    assert steps == [2, 0]
    assert first.values + second.values == uninterrupted.values
    third = Told()
    run_trial(task(one, attempt="c"), third, steps_trained(steps))
    assert (third.replayed, third.reports, steps) == ([1, 2, 3], [], [2, 0])


def test_trial__killed_between_checkpoint_and_report(tmp_path: Path, face_set_path: str) -> None:
    """A checkpoint that nobody lived to judge is judged first; no step is trained twice."""
    one = sweep(tmp_path, face_set_path)

    def die(inputs: RunInputs, saved: Callable[[int], None]) -> None:
        def at_checkpoint(step: int) -> None:
            raise Stop

        train_here(inputs, at_checkpoint)

    with pytest.raises(Stop):
        run_trial(task(one), Told(), die)
    steps: list[int] = []
    told = Told()
    run_trial(task(one, attempt="b"), told, steps_trained(steps))
    assert [v[:3] for v in told.values] == [(1, 0, 2), (2, 0, 4)]
    assert steps == [2]


def test_trial__restarted_within_a_start_of_the_sweep(tmp_path: Path, face_set_path: str) -> None:
    """A process that Tune starts again tells nothing twice: the scheduler knows it."""
    one = sweep(tmp_path, face_set_path)
    with pytest.raises(Stop):
        run_trial(task(one), Told(stop_at=1), train_here)
    told = Told()
    run_trial(task(one), told, train_here)
    assert (told.replayed, [v[0] for v in told.values]) == ([], [2])


def test_trial__copies_another_one(tmp_path: Path, face_set_path: str) -> None:
    """A member goes on from the other's weights and step with its new settings; it may go on from
    another copy later, and a restart takes up the last one."""
    changes: dict[str, Any] = {
        "scheduler": {"kind": "pbt"},
        "budget": {"trials": 4},
        "objective": {"reports": 4},
    }
    one = sweep(tmp_path, face_set_path, **changes)
    good, bad = task(one, 0), task(one, 1)
    run_trial(good, Told(), train_here)
    with pytest.raises(Stop):
        run_trial(bad, Told(stop_at=2), train_here)
    moved = replace(bad, settings={"optim.lr": 5e-3})
    steps: list[int] = []
    told = Told(stop_at=3)
    with pytest.raises(Stop):
        run_trial(moved, told, steps_trained(steps), Copy(good.folder.uri, 2))
    assert steps == [2]
    assert [v[:3] for v in told.values] == [(3, 0, 3)]
    progress = bad.folder.read_progress()
    assert progress is not None
    assert (progress.settings, progress.generation) == ({"optim.lr": 5e-3}, 1)
    last = Told()
    run_trial(replace(moved, attempt="b", replays=False), last, steps_trained(steps))
    assert (steps, [v[:3] for v in last.values]) == ([2, 3], [(4, 0, 4)])
    made = bad.folder.trial(1)
    assert made is not None
    assert [(r.generation, r.report) for r in made.reports] == [(0, 1), (0, 2), (1, 3), (1, 4)]


def test_trial__pretraining_judged_after_a_finetuning(tmp_path: Path, face_set_path: str) -> None:
    """Each report finetunes the trial's checkpoint; another figure than the frozen network's may
    come of it, and no finetuning run stays behind."""
    parts = {
        "job": "pretrain",
        "base": str(ROOT / PRETRAIN),
        "space": {"landmarks.noise_px": {"uniform": [0, 5]}},
    }
    settings = {**PRETRAIN_SETTINGS, "data.path": face_set_path}
    finetune = {
        "base": str(ROOT / FINETUNE),
        "settings": {**SETTINGS, "data.path": face_set_path, "optim.lr": 3e-3},
    }
    config = {**parts, "settings": settings, "finetune": finetune}
    whole = {**tree(tmp_path, face_set_path), **config}
    one = read_sweep(resolve(SweepConfig, whole, "sweep"))
    told = Told()
    run_trial(replace(task(one), settings={"landmarks.noise_px": 1.0}), told, train_here)
    assert [v[:3] for v in told.values] == [(1, 0, 2), (2, 0, 4)]
    left = sorted(path.name for path in Path(SweepDir(one).trial(0).uri).iterdir())
    assert left == ["outcome.json", "reports.json", "s0", "settings.json"]


def test_judge__a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """Settings that do not train are told as such, with the checkpoint and the figure."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 4, "loss": NaN}\n')
    uri = str(tmp_path / "run" / "checkpoints" / "step-00000004.pt")
    with pytest.raises(DataError, match="loss nan") as caught:
        judge(uri, Objective(metric="loss"), "loss", far=0.01, centered=False, device="cpu")
    assert "narrow the space" in caught.value.fix


def test_folder__another_sweep_is_refused(tmp_path: Path, face_set_path: str) -> None:
    """Every difference is named; a larger budget is none."""
    one = sweep(tmp_path, face_set_path)
    SweepDir(one).claim({"trials": "f"})
    SweepDir(sweep(tmp_path, face_set_path, budget={"trials": 9})).claim({"trials": "f"})
    other = sweep(
        tmp_path,
        face_set_path,
        space={"optim.lr": {"log_uniform": [1e-4, 1e-1]}},
        settings={"optim.weight_decay": 0.5},
    )
    with pytest.raises(ConfigError, match="holds another sweep") as caught:
        SweepDir(other).claim({"trials": "g"})
    assert "space.optim.lr.high: 0.01 -> 0.1" in caught.value.found
    assert "optim.weight_decay: 0.1 -> 0.5" in caught.value.found
    assert "faces.trials: f -> g" in caught.value.found


def test_folder__unknown_files_are_refused(tmp_path: Path, face_set_path: str) -> None:
    (tmp_path / "sweeps" / "sweep").mkdir(parents=True)
    (tmp_path / "sweeps" / "sweep" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no sweep.json of a sweep"):
        SweepDir(sweep(tmp_path, face_set_path)).claim({})
