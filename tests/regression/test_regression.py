"""The values of a run are those recorded; what holds on any machine is tested on every one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.regression import record, runs
from tests.regression.values import class_name, differences, run_values

# One process of pytest-xdist runs them all: they share their runs. Those with a Ray are in its own group, see
# tests/conftest.py.
together = pytest.mark.xdist_group("regression")
recorded = pytest.mark.skipif(
    not record.recorded_file().exists(),
    reason=f"no values recorded for this class of machines ({record.recorded_file().name})",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs; each is made when it is first asked for."""
    return tmp_path_factory.mktemp("regression")


@pytest.fixture(scope="module")
def debug_values(folder: Path) -> dict[str, Any]:
    return record.debug(folder)


def assert_recorded(found: dict[str, Any]) -> None:
    assert record.check(found, record.recorded_file()) == []


@together
@recorded
def test_runs__have_the_bits_recorded(debug_values: dict[str, Any]) -> None:
    assert_recorded(debug_values)


@together
@recorded
def test_tokens__have_the_bits_recorded(folder: Path) -> None:
    assert_recorded(record.tokens(folder))


@together
def test_tokens__are_equal_in_another_process(folder: Path) -> None:
    here, file = record.tokens(folder), folder / "tokens.json"
    command = [sys.executable, "-m", "tests.regression.record", "--write", "--parts", "tokens"]
    command += ["--folder", str(folder), "--file", str(file)]
    subprocess.run(command, cwd=runs.ROOT, check=True, capture_output=True)
    assert record.check(here, file) == []


@together
def test_continued_runs__equal_those_without_a_break(folder: Path, debug_values: dict[str, Any]) -> None:
    """Reports of all steps and the last checkpoint, bit by bit."""
    without = {name: debug_values[name] for name in runs.CONTINUED}
    assert differences(without, record.continued(folder), {}) == []


@pytest.mark.ray
@pytest.mark.long  # tests/engine/test_ray_train.py compares the losses of two workers
def test_two_workers__report_and_save_what_one_does(folder: Path) -> None:
    """The same metrics, schedules and parts of a checkpoint, whatever the machine; and the bits recorded, where there
    are any."""
    found = record.two_workers(folder)
    (two,) = found.values()
    one = run_values(runs.train(folder, "per_view"))
    assert two["metrics"].keys() == one["metrics"].keys()
    for name in runs.SCHEDULES:
        assert two["metrics"][name] == one["metrics"][name], name
    leaves = [{part: value["leaves"] for part, value in run["checkpoint"].items()} for run in (one, two)]
    assert leaves[0] == leaves[1]
    if record.recorded_file().exists():
        assert_recorded(found)


@pytest.mark.ray
@pytest.mark.slow
@recorded
def test_sweep__has_the_bits_recorded(folder: Path, no_ray: None) -> None:
    assert_recorded(record.sweep(folder))


def test_differences__name_what_changed_and_follow_renames() -> None:
    old = {"run": {"metrics": {"old_name": 1.0, "loss": 2.0}}, "not run": 1}
    new = {"run": {"metrics": {"new_name": 1.0, "loss": 2.0}}}
    assert differences(old, new, {"old_name": "new_name"}) == []
    assert differences(old, new, {}) == [
        "run/metrics/new_name: not recorded",
        "run/metrics/old_name: recorded, but not there any more",
    ]
    new["run"]["metrics"]["new_name"] = 1.5
    assert differences(old, new, {"old_name": "new_name"}) == ["run/metrics/new_name: 1.0 -> 1.5"]


def test_records__are_small() -> None:
    """A record is for a repository: less than 60 KB, with the class of machines that it names."""
    for file in record.RECORDED.glob("*.json"):
        assert file.stat().st_size < 60_000
        described = json.loads(file.read_text())["machine_class"]
        assert file.stem == class_name(described)
