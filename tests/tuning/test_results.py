"""Ranking, table and Parquet file of trials, against values computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lafs_ray.tuning.confirmation import comparison
from lafs_ray.tuning.results import Report, Status, Trial, best, ranked, table, to_parquet
from lafs_ray.tuning.search_space import Dimension

SPACE = {
    "optim.lr": Dimension.model_validate({"log_uniform": [1e-4, 1e-2]}),
    "mixup.probability": Dimension.model_validate({"choice": [0.0, 0.2]}),
    "mixup.alpha": Dimension.model_validate({"uniform": [0, 1], "when": {"mixup.probability": [0.2]}}),
    "augmentation.rand_augment": Dimension.model_validate({"choice": [None, [1, 2]]}),
}


def trial(number: int, status: Status, *curve: float, **settings: Any) -> Trial:
    reports = tuple(
        Report(n + 1, seed=0, step=10 * (n + 1), value=v, objective=v, seconds=2.0) for n, v in enumerate(curve)
    )
    return Trial(number, settings, status, reports)


def test_ranked__finished_first() -> None:
    """A stopped trial ranks below a finished one, whatever its last objective."""
    trials = [
        trial(0, "stopped", 0.9),
        trial(1, "finished", 0.5, 0.6),
        trial(2, "finished", 0.5, 0.7),
        trial(3, "failed"),
        trial(4, "stopped", 0.5, 0.55),
    ]
    assert [one.number for one in ranked(trials, 1)] == [2, 1, 4, 0, 3]
    assert [one.number for one in ranked(trials, -1)] == [1, 2, 4, 0, 3]
    winner = best(trials, 1)
    assert winner is not None
    assert winner.number == 2


def test_best__before_any_has_finished() -> None:
    """In an interrupted sweep the best of those with most progress; None without any report."""
    winner = best([trial(0, "running", 0.9), trial(1, "running", 0.5, 0.6)], 1)
    assert winner is not None
    assert winner.number == 1
    assert best([trial(0, "waiting"), trial(1, "failed", 0.9)], 1) is None


def test_table__lists_all_and_the_failures() -> None:
    trials = [
        trial(0, "stopped", 0.5, **{"optim.lr": 0.00123456, "mixup.probability": 0.0}),
        trial(1, "finished", 0.5, 0.6, **{"optim.lr": 0.002, "augmentation.rand_augment": [1, 2]}),
        Trial(2, {"optim.lr": 0.01}, "failed", (), "loss nan; narrow the space"),
    ]
    lines = table(trials, SPACE, 1, 2)
    assert lines[0].split() == [
        *("trial", "status", "report", "objective", "s"),
        *("optim.lr", "probability", "mixup.alpha", "rand_augment"),
    ]
    assert lines[1].split() == ["1", "finished", "2/2", "0.6000", "4", "0.002", *"––", "[1,", "2]"]
    assert lines[2].split() == ["0", "stopped", "1/2", "0.5000", "2", "0.001235", "0", *"––"]
    assert lines[3].split() == ["2", "failed", "0/2", "–", "0", "0.01", *"–––"]
    assert lines[4] == "trial 2 failed: loss nan; narrow the space"


def test_to_parquet__columns(tmp_path: Path) -> None:
    """Numbers stay numbers, other values are JSON, and an inactive key is null."""
    trials = [
        trial(0, "stopped", 0.5, **{"optim.lr": 1e-3, "mixup.probability": 0}),
        trial(1, "finished", 0.5, 0.6, **{"augmentation.rand_augment": [1, 2]}),
    ]
    (tmp_path / "a.parquet").write_bytes(to_parquet(trials, SPACE))
    rows = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert rows["trial"] == [0, 1]
    assert rows["status"] == ["stopped", "finished"]
    assert rows["objective"] == [0.5, 0.6]
    assert rows["curve"] == [[0.5], [0.5, 0.6]]
    assert rows["seed_values"] == [[0.5], [0.6]]
    assert rows["seconds"] == [2.0, 4.0]
    assert rows["optim.lr"] == [1e-3, None]
    assert rows["mixup.probability"] == [0.0, None]
    assert rows["augmentation.rand_augment"] == [None, "[1, 2]"]


def test_comparison__is_paired() -> None:
    """Means and sample deviations of both and of the differences by seed."""
    lines = comparison([0.6, 0.7, 0.5], [0.5, 0.6, 0.6])
    assert lines == [
        "winner: 0.6000 ± 0.1000",
        "default: 0.5667 ± 0.0577",
        "winner - default: 0.0333 ± 0.1155, 2 of 3 seeds better",
        "95 % interval -0.2535 to 0.3202, p = 0.67 (paired t-test): not significant",
    ]
    assert comparison([0.6, 0.7, 0.65], [0.5, 0.6, 0.55])[-1].endswith(": significant")
    assert comparison([0.6], [0.5])[-1].startswith("one seed carries no interval")
