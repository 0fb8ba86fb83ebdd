"""Ranking, importance, table and Parquet of trials, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lafs_ray.evaluation.plots import as_png
from lafs_ray.tuning.results import (
    Report,
    Status,
    Trial,
    best,
    common_report,
    comparison,
    importance_table,
    importances,
    ranked,
    table,
    write_parquet,
)
from lafs_ray.tuning.space import Dimension
from lafs_ray.tuning.sweep_plots import (
    curves_figure,
    importance_figure,
    interaction_figure,
    objective_figure,
)

SPACE = {
    "optim.lr": Dimension.model_validate({"log_uniform": [1e-4, 1e-2]}),
    "mixup.probability": Dimension.model_validate({"choice": [0.0, 0.2]}),
    "mixup.alpha": Dimension.model_validate(
        {"uniform": [0, 1], "when": {"mixup.probability": [0.2]}}
    ),
    "augmentation.rand_augment": Dimension.model_validate({"choice": [None, [1, 2]]}),
}


def trial(number: int, status: Status, *curve: float, **settings: Any) -> Trial:
    reports = tuple(
        Report(n + 1, seed=0, step=10 * (n + 1), value=v, objective=v, seconds=2.0)
        for n, v in enumerate(curve)
    )
    return Trial(number, settings, status, reports)


def test_ranked__finished_first() -> None:
    """A stopped trial never wins against a finished one, whatever its last figure was."""
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
    """Of an interrupted sweep the best among those that came furthest; of none, nothing."""
    winner = best([trial(0, "running", 0.9), trial(1, "running", 0.5, 0.6)], 1)
    assert winner is not None
    assert winner.number == 1
    assert best([trial(0, "waiting"), trial(1, "failed", 0.9)], 1) is None


def test_importances__of_a_key_that_decides_all_and_of_one_that_does_not() -> None:
    """ε² is 1 where bins explain everything; noise is near 0 with a large p."""
    generator = np.random.default_rng(3)
    trials = [
        trial(
            n,
            "stopped" if n % 2 else "finished",
            0.5 + 0.1 * (n % 2),
            *([] if n % 2 else [0.9]),
            **{
                "mixup.probability": 0.2 * (n % 2),
                "optim.lr": float(generator.uniform(1e-4, 1e-2)),
            },
        )
        for n in range(12)
    ]
    # Half were stopped after the first report, so all are compared there.
    assert common_report(trials) == 1
    found = importances(trials, SPACE)
    assert [one.key for one in found[:2]] == ["mixup.probability", "optim.lr"]
    assert found[0].share == pytest.approx(1.0)
    # 2 · 6! · 6! of 12! shuffles part the halves as well: 2 in 924.
    assert found[0].chance == pytest.approx(2 / 924, abs=4e-3)
    assert found[1].share is not None
    assert found[1].share < 0.3
    assert found[1].chance is not None
    assert found[1].chance > 0.05
    # No trial has the others.
    assert [(one.share, one.num_trials) for one in found[2:]] == [(None, 0), (None, 0)]
    lines = importance_table(found)
    assert lines[1].split()[:2] == ["mixup.probability", "1.00"]
    assert lines[-1].split()[1:] == ["–", "–", "0"]


def test_importances__by_hand() -> None:
    """Groups (0, 2, 4) and (6, 8, 10): total 70, within 16, so ε² = (54 - 1·16/4) / 70."""
    values = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    trials = [
        trial(n, "finished", v, **{"mixup.probability": 0.2 * (n > 2)})
        for n, v in enumerate(values)
    ]
    found = {one.key: one for one in importances(trials, SPACE)}
    assert found["mixup.probability"].share == pytest.approx(50 / 70)


def test_table__shows_all_and_names_failures() -> None:
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


def test_write_parquet__columns(tmp_path: Path) -> None:
    """Numbers stay numbers, other values are JSON, and a key that a trial has not is null."""
    trials = [
        trial(0, "stopped", 0.5, **{"optim.lr": 1e-3, "mixup.probability": 0}),
        trial(1, "finished", 0.5, 0.6, **{"augmentation.rand_augment": [1, 2]}),
    ]
    write_parquet(str(tmp_path / "a.parquet"), trials, SPACE)
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
    """Means and sample deviations of both and of the differences seed by seed."""
    lines = comparison({"winner": [0.6, 0.7, 0.5], "default": [0.5, 0.6, 0.6]}, 1)
    assert lines == [
        "winner: 0.6000 ± 0.1000",
        "default: 0.5667 ± 0.0577",
        "winner - default: 0.0333 ± 0.1155, 2 of 3 seeds better",
    ]


def test_figures__of_few_and_odd_trials() -> None:
    """Every picture is drawn with trials that have not all keys, and with a single one."""
    trials = [
        trial(0, "stopped", 0.5, **{"optim.lr": 1e-3, "mixup.probability": 0.0}),
        trial(1, "finished", 0.5, 0.6, **{"optim.lr": 2e-3, "augmentation.rand_augment": [1, 2]}),
        Trial(2, {}, "failed", (), "no"),
    ]
    for shown in (trials, trials[:1], trials[2:]):
        found = importances(shown, SPACE)
        figures = [
            objective_figure(shown, SPACE, "pair_accuracy", 1),
            curves_figure(shown, "pair_accuracy", 1, 1),
            importance_figure(found),
            interaction_figure(shown, SPACE, ["optim.lr", "augmentation.rand_augment"]),
        ]
        for figure in figures:
            assert as_png(figure).startswith(b"\x89PNG")
    panels = objective_figure(trials, SPACE, "pair_accuracy", 1).axes
    assert [axes.get_xlabel() for axes in panels if axes.axison] == list(SPACE)
    assert panels[0].get_xscale() == "log"
    ticks = [label.get_text() for label in panels[3].get_xticklabels()]
    assert ticks == ["null", "[1, 2]"]
