"""A whole sweep: driven without Ray where Ray is not the point, on Ray where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from lafs_ray.cli.train import launch
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import load
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.driver import Driver
from lafs_ray.tuning.preflight import check_sweep
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.space import draw_settings
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import run_trial, train_here
from lafs_ray.tuning.trial_config import Sweep
from tests.training.faces import ROOT
from tests.tuning.sweeps import pair_file, sweep, tree

PICTURES = ["curves.png", "importance.png", "interaction.png", "objective.png"]


def in_turn(stop_after: int | None = None) -> Callable[..., None]:
    """Stands in for Tune: one trial after the other; ends like Ctrl-C after some."""

    def tune(
        self: Driver, numbers: list[int], propose: Any, task: Any, scheduler: Any, watch: Any
    ) -> None:
        for count, number in enumerate(numbers):
            if count == stop_after:
                raise KeyboardInterrupt

            def tell(report: Report, replayed: bool, number: int = number) -> None:
                watch.reported(number, report, replayed)

            run_trial(task(number, propose(number)), tell, train_here)
            watch.ended(number, "")

    return tune


def drive(monkeypatch: pytest.MonkeyPatch, one: Sweep, stop_after: int | None = None) -> SweepDir:
    monkeypatch.setattr(Driver, "_tune", in_turn(stop_after))
    Driver(check_sweep(one)).run()
    return SweepDir(one)


def test_sweep__from_its_trials_to_the_winner(
    tmp_path: Path,
    face_set_path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C leaves the table so far; the next start does only what is left; the winner's file is
    the base with its settings and runs as it is; winner and base are compared over new seeds."""
    pytest.importorskip("ray")
    one = sweep(
        tmp_path,
        face_set_path,
        settings={"run.storage": str(tmp_path / "runs"), "duration": "2 steps"},
        space={
            "optim.lr": {"log_uniform": [1e-4, 1e-2]},
            "optim.layer_decay": {"choice": [0.6, 1.0]},
        },
        confirm={"pairs": pair_file(tmp_path, "test.bin", 2), "seeds": [8, 9]},
    )
    with pytest.raises(KeyboardInterrupt):
        drive(monkeypatch, one, stop_after=1)
    printed = capsys.readouterr().out
    assert "trial    status  report  objective" in printed
    assert pq.read_table(tmp_path / "sweeps" / "sweep" / "results.parquet").num_rows == 1
    first = SweepDir(one).trial(0).read_progress()
    folder = drive(monkeypatch, one)
    assert folder.trial(0).read_progress() == first
    trials = folder.trials()
    assert [trial.status for trial in trials] == ["finished"] * 3
    expected = [draw_settings(one.config.space, 0, number) for number in range(3)]
    assert [trial.settings for trial in trials] == expected
    uri = Path(folder.uri)
    assert sorted(path.name for path in uri.glob("*.png")) == PICTURES
    confirmed = json.loads((uri / "confirm.json").read_text())
    assert (confirmed["metric"], confirmed["seeds"]) == ("pair_accuracy", [8, 9])
    assert len(confirmed["winner"]) == len(confirmed["default"]) == 2
    printed = capsys.readouterr().out
    assert "continuing sweep: 1 trials are done" in printed
    assert "winner - default: " in printed
    _the_winner_runs(one, trials, uri / "winner.yaml")
    drive(monkeypatch, one)
    assert "report 1/2" not in capsys.readouterr().out, "nothing was left to do"


def _the_winner_runs(one: Sweep, trials: list[Trial], path: Path) -> None:
    winner = max(trials, key=lambda trial: (trial.objective, -trial.number))
    config = load(FinetuneConfig, str(path))
    assert config.run.name == "sweep_winner"
    assert config.optim.lr == winner.settings["optim.lr"]
    assert config.optim.layer_decay == winner.settings["optim.layer_decay"]
    same = config.model_dump(exclude={"run": {"name"}, "optim": {"lr", "layer_decay"}})
    excluded = {"run": {"name"}, "optim": {"lr", "layer_decay"}}
    assert same == one.default.model_dump(exclude=excluded)
    launch(config)


def test_sweep__trials_that_fail(
    tmp_path: Path,
    face_set_path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sweep of which nothing comes says why; failed trials are tried again by the next start."""
    pytest.importorskip("ray")
    one = sweep(tmp_path, face_set_path, budget={"trials": 1})

    def fail(self: Driver, numbers: list[int], propose: Any, *others: Any) -> None:
        for number in numbers:
            propose(number)
            others[-1].ended(number, "the node was struck by lightning")

    monkeypatch.setattr(Driver, "_tune", fail)
    for _ in range(2):
        with pytest.raises(ConfigError, match="the node was struck by lightning"):
            Driver(check_sweep(one)).run()
        assert "trial 0: failed the node was struck" in capsys.readouterr().out


def test_sweep__hours_are_over(
    tmp_path: Path,
    face_set_path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hours of all starts together: nothing starts without any left, and more are accepted."""
    pytest.importorskip("ray")
    one = sweep(tmp_path, face_set_path, budget={"trials": 1, "hours": 1e-9})
    with pytest.raises(ConfigError, match="no report of any"):
        drive(monkeypatch, one)
    assert SweepDir(one).spent_s() > 0
    more = sweep(tmp_path, face_set_path, budget={"trials": 1, "hours": 1.0})
    assert drive(monkeypatch, more).trials()[0].status == "finished"


def test_tpe__learns_and_is_the_same_again() -> None:
    """After trials in which small values did well it proposes small ones; proposals depend on
    seed, number and what is known, in whatever process; conditions hold."""
    pytest.importorskip("optuna")
    from lafs_ray.tuning.optuna_tpe import Tpe
    from lafs_ray.tuning.space import Dimension

    space = {
        "a": Dimension.model_validate({"uniform": [0, 1]}),
        "b": Dimension.model_validate({"choice": [[1, 2], None, 3]}),
        "c": Dimension.model_validate({"integer": [1, 9], "when": {"b": [3]}}),
    }

    def value_of(settings: dict[str, Any]) -> float:
        return float(settings["a"] + (0.0 if settings["b"] == 3 else 0.5))

    def known(tpe: Tpe, count: int) -> Tpe:
        for number in range(count):
            settings = tpe.propose(number)
            value = value_of(settings)
            status = "stopped" if value > 1.2 else "finished"
            report = Report(1, seed=0, step=1, value=value, objective=value, seconds=1.0)
            tpe.learn(Trial(number, settings, status, (report,)))
        return tpe

    def fresh() -> Tpe:
        return Tpe(space, seed=0, startup=12, sign=-1)

    first = known(fresh(), 40)
    assert [fresh().propose(n) for n in range(3)] == [draw_settings(space, 0, n) for n in range(3)]
    proposed = [first.propose(number) for number in range(40, 50)]
    # Random settings come to 0.5 + 0.5·2/3 = 0.83 on average.
    assert sum(map(value_of, proposed)) / 10 < 0.5
    assert all(("c" in one) == (one["b"] == 3) for one in proposed)
    assert [known(fresh(), 40).propose(number) for number in range(40, 50)] == proposed


@pytest.fixture
def local_ray() -> Iterator[None]:
    """What a test starts of Ray ends with it."""
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sweep__on_workers(
    tmp_path: Path,
    face_set_path: str,
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A trial of two Ray Train workers finds room beside its own process."""
    workers = {"compute.workers": 2, "ingest.actors_per_worker": 1}
    one = sweep(
        tmp_path,
        face_set_path,
        settings=workers,
        budget={"trials": 1, "cpus": 7},
        scheduler={"kind": "asha", "reduction": 1.5},
    )
    Driver(check_sweep(one)).run()
    assert "1 trials at a time" in capsys.readouterr().out
    (trial,) = SweepDir(one).trials()
    assert trial.status == "finished"
    assert [report.step for report in trial.reports] == [2, 4]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_sweep__as_a_population(tmp_path: Path, face_set_path: str, local_ray: None) -> None:
    """Members exchange checkpoints and come to their end, with more of them than cores."""
    population = sweep(
        tmp_path,
        face_set_path,
        settings={"duration": "12 steps"},
        # Losses differ from the third step on; accuracies of 20 pairs may not.
        objective={"metric": "loss", "pairs": None, "reports": 6},
        budget={"trials": 4},
        scheduler={"kind": "pbt", "quantile": 0.5},
    )
    Driver(check_sweep(population)).run()
    members = SweepDir(population).trials()
    assert [member.status for member in members] == ["finished"] * 4
    assert all(member.reports[-1].step == 12 for member in members)
    copies = [member for member in members if member.reports[-1].generation > 0]
    assert copies, "nobody copied anybody"
    drawn = [draw_settings(population.config.space, 0, number) for number in range(4)]
    assert all(member.settings not in drawn for member in copies)


def ended_in(folder: Path) -> list[Path]:
    """Trials that came to an end; those that failed are run again, and may have no report."""
    return [
        path.parent
        for path in folder.glob("*/outcome.json")
        if json.loads(path.read_text())["status"] != "failed"
    ]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sweep__killed_and_continued(tmp_path: Path, face_set_path: str) -> None:
    """More trials than room; SIGKILL after the first has ended; the same command repeats none of
    those that ended, and brings all to an end. Settings that do not train fail by themselves."""
    pytest.importorskip("ray")
    whole = tree(
        tmp_path,
        os.path.relpath(face_set_path, ROOT),
        settings={"duration": "12 steps"},
        space={"optim.lr": {"grid": [1e-3, 1e-2, 1e30, 2e-3]}},
        searcher={"kind": "grid"},
        objective={"reports": 3},
        budget={"trials": 4, "concurrent": 2},
        scheduler={"kind": "asha", "reduction": 2},
    )
    # Relative, as people type them: trials run in another folder.
    whole["storage"] = os.path.relpath(whole["storage"], ROOT)
    whole["objective"]["pairs"] = os.path.relpath(whole["objective"]["pairs"], ROOT)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(whole))))
    command = [sys.executable, "jobs/sweep.py", str(tmp_path / "sweep.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "sweeps" / "sweep" / "trials"
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 240
        while not ended_in(folder):
            assert process.poll() is None, "the sweep ended before its first trial"
            assert time.monotonic() < deadline, "no trial ended in 240 s"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    # What its processes were writing as they died has been written.
    time.sleep(2)
    ended = ended_in(folder)
    assert len(ended) < 3, "killed too late to show anything"
    before = {path: (path / "reports.json").read_bytes() for path in ended}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"continuing sweep: {len(ended)} trials are done" in done.stdout
    assert {path: (path / "reports.json").read_bytes() for path in ended} == before
    outcomes = [json.loads(path.read_text()) for path in sorted(folder.glob("*/outcome.json"))]
    statuses = [outcome["status"] for outcome in outcomes]
    assert statuses[2] == "failed", outcomes
    assert {*statuses[:2], statuses[3]} <= {"finished", "stopped"}
    assert "finished" in statuses
    assert "trial 2 failed: " in done.stdout
