"""A whole sweep: driven without Ray where Ray is not the point, on Ray where it is."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lafs_ray.cli.train import launch
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import load
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.driver import Driver
from lafs_ray.tuning.preflight import check_sweep
from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.search import propose
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import TrialBatch, run_trial, train_here
from lafs_ray.tuning.trial_config import Sweep
from tests.training.faces import ROOT
from tests.tuning.sweeps import pair_file, sweep, tree

# Importance needs ten trials.
PLOTS = ["curves.png", "rank.png", "slice.png"]


@pytest.fixture(autouse=True)
def _info_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lafs_ray")


def one_by_one(stop_after: int | None = None) -> Callable[[TrialBatch], None]:
    """Return a substitute for Tune that runs trials in order, and raises Ctrl-C after some."""

    def run_batch(batch: TrialBatch) -> None:
        for count, number in enumerate(batch.numbers):
            if count == stop_after:
                raise KeyboardInterrupt
            spec = batch.make_spec(number, None)
            run_trial(spec, partial(batch.on_report, number), train_here)
            batch.on_end(number, "")

    return run_batch


def drive(one: Sweep, stop_after: int | None = None) -> SweepDir:
    Driver(one, check_sweep(one), one_by_one(stop_after)).run()
    return SweepDir(one)


def test_sweep__from_its_trials_to_the_winner(
    tmp_path: Path, face_set_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C prints the table so far; the next start runs only what is left; the winner's file is the base with its
    settings and runs unchanged; both are compared over new seeds."""
    pytest.importorskip("ray")
    one = sweep(
        tmp_path,
        face_set_path,
        settings={"run.storage": str(tmp_path / "runs"), "duration": "2 steps"},
        space={"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "optim.layer_decay": {"choice": [0.6, 1.0]}},
        confirm={"pairs": pair_file(tmp_path, "test.bin", 2), "seeds": [8, 9]},
    )
    with pytest.raises(KeyboardInterrupt):
        drive(one, stop_after=1)
    printed = caplog.text
    assert "trial    status  report  objective" in printed
    assert pq.read_table(tmp_path / "sweeps" / "sweep" / "results.parquet").num_rows == 1
    first = SweepDir(one).trial(0).read()
    folder = drive(one)
    assert folder.trial(0).read() == first
    trials = folder.read_trials()
    assert [trial.status for trial in trials] == ["finished"] * 3
    expected = [propose(one.config, number) for number in range(3)]
    assert [trial.settings for trial in trials] == expected
    uri = Path(folder.uri)
    assert sorted(path.name for path in uri.glob("*.png")) == PLOTS
    confirmed = json.loads((uri / "confirm.json").read_text())
    assert (confirmed["metric"], confirmed["seeds"]) == ("pair_accuracy", [8, 9])
    assert len(confirmed["winner"]) == len(confirmed["default"]) == 2
    printed = caplog.text
    assert "continuing sweep: trials already done: 1" in printed
    assert "winner - default: " in printed
    _the_winner_runs(one, trials, uri / "winner.yaml")
    caplog.clear()
    drive(one)
    assert "report 1/2" not in caplog.text, "nothing was left to do"


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


def test_sweep__trials_that_fail(tmp_path: Path, face_set_path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep without any result raises the reason; the next start retries failed trials."""
    pytest.importorskip("ray")
    one = sweep(tmp_path, face_set_path, budget={"trials": 1})

    def fail(batch: TrialBatch) -> None:
        for number in batch.numbers:
            batch.on_end(number, "the node was struck by lightning")

    for _ in range(2):
        caplog.clear()
        with pytest.raises(ConfigError, match="the node was struck by lightning"):
            Driver(one, check_sweep(one), fail).run()
        assert "trial 0: failed the node was struck" in caplog.text


def test_sweep__hours_used_up(tmp_path: Path, face_set_path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The budget spans all starts: nothing runs once it is used up, and it may be raised."""
    pytest.importorskip("ray")
    one = sweep(tmp_path, face_set_path, budget={"trials": 1, "hours": 1e-9})
    with pytest.raises(ConfigError, match="no trial has a report"):
        drive(one)
    assert SweepDir(one).read_spent_s() > 0
    more = sweep(tmp_path, face_set_path, budget={"trials": 1, "hours": 1.0})
    assert drive(more).read_trials()[0].status == "finished"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sweep__on_workers(
    tmp_path: Path, face_set_path: str, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial of a Ray Train worker fits beside its own process."""
    workers = {"compute.workers": 1, "ingest.actors_per_worker": 1}
    one = sweep(
        tmp_path,
        face_set_path,
        settings=workers,
        budget={"trials": 1, "cpus": 4},
        scheduler={"kind": "asha", "reduction_factor": 1.5},
    )
    from lafs_ray.tuning.tuner import run_batch

    Driver(one, check_sweep(one), run_batch).run()
    assert "concurrent trials: 1, each" in caplog.text
    (trial,) = SweepDir(one).read_trials()
    assert trial.status == "finished"
    assert [report.step for report in trial.reports] == [2, 4]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_sweep__as_a_population(tmp_path: Path, face_set_path: str, local_ray: None) -> None:
    """Members copy each other's checkpoints and finish, with more members than cores."""
    population = sweep(
        tmp_path,
        face_set_path,
        settings={"duration": "12 steps"},
        # Losses differ from the third step on; accuracies of 20 pairs may not.
        objective={"metric": "loss", "pairs": None, "reports": 6},
        budget={"trials": 4},
        scheduler={"kind": "pbt", "quantile_fraction": 0.5},
    )
    from lafs_ray.tuning.tuner import run_batch

    Driver(population, check_sweep(population), run_batch).run()
    members = SweepDir(population).read_trials()
    assert [member.status for member in members] == ["finished"] * 4
    assert all(member.reports[-1].step == 12 for member in members)
    copies = [member for member in members if member.reports[-1].generation > 0]
    assert copies, "no member copied another"
    proposed = [propose(population.config, number) for number in range(4)]
    assert all(member.settings not in proposed for member in copies)


def ended_in(folder: Path) -> list[Path]:
    """Return the trials that ended; failed ones run again, and may have no report."""
    return [
        path.parent
        for path in folder.glob("*/trial.json")
        if json.loads(path.read_text())["status"] in ("finished", "stopped")
    ]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_sweep__killed_and_continued(tmp_path: Path, face_set_path: str) -> None:
    """SIGKILL after the first of more trials than fit has ended; the same command repeats none that ended, and finishes
    the others. A trial whose settings diverge fails alone."""
    pytest.importorskip("ray")
    whole = tree(
        tmp_path,
        os.path.relpath(face_set_path, ROOT),
        settings={"duration": "12 steps"},
        space={"optim.lr": {"choice": [1e-3, 1e-2, 1e30, 2e-3]}},
        searcher={"kind": "grid"},
        objective={"reports": 3},
        budget={"trials": 4, "max_concurrent": 2},
        scheduler={"kind": "asha", "reduction_factor": 2},
    )
    # Relative, as typed on a command line: trials run in another directory.
    whole["storage"] = os.path.relpath(whole["storage"], ROOT)
    whole["objective"]["pairs"] = os.path.relpath(whole["objective"]["pairs"], ROOT)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(whole))))
    command = [sys.executable, "jobs/sweep.py", str(tmp_path / "sweep.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "sweeps" / "sweep" / "trials"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 240
        while not ended_in(folder):
            assert process.poll() is None, "the sweep ended before its first trial"
            assert time.monotonic() < deadline, "no trial ended in 240 s"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    # Its dying processes have finished their writes.
    time.sleep(2)
    ended = ended_in(folder)
    assert len(ended) < 3, "killed too late for the test"
    before = {path: (path / "trial.json").read_bytes() for path in ended}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"continuing sweep: trials already done: {len(ended)}" in done.stdout
    assert {path: (path / "trial.json").read_bytes() for path in ended} == before
    outcomes = [json.loads(path.read_text()) for path in sorted(folder.glob("*/trial.json"))]
    statuses = [outcome["status"] for outcome in outcomes]
    assert statuses[2] == "failed", outcomes
    assert {*statuses[:2], statuses[3]} <= {"finished", "stopped"}
    assert "finished" in statuses
    assert "trial 2 failed: " in done.stdout
