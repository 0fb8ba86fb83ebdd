"""What the trials of a sweep came to: ranking, importance of each key, table and Parquet."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lafs_ray.data.io import filesystem
from lafs_ray.tuning.space import Dimension, Settings, Space

Status = Literal["waiting", "running", "finished", "stopped", "failed"]

_BINS = 3
_SHUFFLES = 2000
# Fewer trials say nothing about a key.
_MIN_TRIALS = 6
_SHOWN_WIDTH = 14


@dataclass(frozen=True)
class Report:
    """One judgment of a trial.

    Args:
        report: its number, from 1.
        seed: `run.seed` of the run that was judged.
        step: optimizer steps it had done.
        value: its figure.
        objective: that of the trial so far: of the first seed on the way, then the mean over seeds.
        seconds: since the report before.
        generation: how often the trial went on from a copy of another one (pbt).
    """

    report: int
    seed: int
    step: int
    value: float
    objective: float
    seconds: float
    generation: int = 0


@dataclass(frozen=True)
class Trial:
    """A trial as far as it has come.

    Args:
        number: from 0.
        settings: of the keys of the space that it has.
        status: where it stands; stopped is by the scheduler.
        reports: in order.
        message: why it failed.
    """

    number: int
    settings: Settings
    status: Status
    reports: tuple[Report, ...] = ()
    message: str = ""

    @property
    def objective(self) -> float | None:
        """The newest objective."""
        return self.reports[-1].objective if self.reports else None

    def objective_at(self, report: int) -> float | None:
        """The objective at a report, None where it did not get there."""
        return next((o.objective for o in reversed(self.reports) if o.report == report), None)

    @property
    def seed_values(self) -> list[float]:
        """The last figure of each seed."""
        return [*{one.seed: one.value for one in self.reports}.values()]

    @property
    def seconds(self) -> float:
        """Of training and judging."""
        return sum(one.seconds for one in self.reports)


def ranked(trials: Sequence[Trial], sign: int) -> list[Trial]:
    """The best first: those that finished by their objective, then the others by how far they came.

    Args:
        trials: of a sweep.
        sign: 1 where more is better, -1 where less is.
    """

    def key(trial: Trial) -> tuple[Any, ...]:
        value = trial.objective
        better = float("inf") if value is None else -sign * value
        far = trial.reports[-1].report if trial.reports else 0
        return trial.status != "finished", -far, better, trial.number

    return sorted(trials, key=key)


def best(trials: Sequence[Trial], sign: int) -> Trial | None:
    """The winner: the best that finished, or came furthest as long as none has."""
    judged = [trial for trial in trials if trial.reports and trial.status != "failed"]
    return ranked(judged, sign)[0] if judged else None


def common_report(trials: Sequence[Trial]) -> int:
    """The last report that every judged trial has reached; 0 without any."""
    reached = [max(one.report for one in trial.reports) for trial in trials if trial.reports]
    return min(reached, default=0)


@dataclass(frozen=True)
class Importance:
    """How much of the objective's variance goes with a key.

    Args:
        key: of the space.
        share: ε², the share of the variance that lies between bins of the key (thirds of the trials
            for numbers, values for a list), less what bins explain by chance; at least 0. None
            where fewer than 6 trials have the key, or all have one value.
        chance: share of 2000 shuffles of the objectives that reach it: a p-value.
        num_trials: trials it rests on.
    """

    key: str
    share: float | None
    chance: float | None
    num_trials: int


def importances(trials: Sequence[Trial], space: Space) -> list[Importance]:
    """The importance of every key, the greatest first.

    All trials are compared at the last report that all have reached, so early stopping neither
    removes the bad ones nor compares short runs with long ones. Each key is looked at alone.
    """
    at = common_report(trials)
    found = [_importance(key, dimension, trials, at) for key, dimension in space.items()]
    return sorted(found, key=lambda one: -(one.share if one.share is not None else -1.0))


def _importance(key: str, dimension: Dimension, trials: Sequence[Trial], at: int) -> Importance:
    pairs = [
        (trial.settings[key], value)
        for trial in trials
        if key in trial.settings and (value := trial.objective_at(at)) is not None
    ]
    objectives = np.array([value for _, value in pairs], dtype=np.float64)
    bins = _bins([value for value, _ in pairs], dimension)
    if len(pairs) < _MIN_TRIALS or len(np.unique(bins)) < 2 or np.ptp(objectives) == 0:
        return Importance(key, None, None, len(pairs))
    share = _explained(objectives, bins)
    generator = np.random.default_rng(0)
    shuffled = [_explained(generator.permutation(objectives), bins) for _ in range(_SHUFFLES)]
    reached = (1 + sum(one >= share - 1e-12 for one in shuffled)) / (1 + _SHUFFLES)
    return Importance(key, max(share, 0.0), reached, len(pairs))


def _bins(values: Sequence[Any], dimension: Dimension) -> NDArray[np.int64]:
    """Which bin each value lies in: thirds of the trials for numbers, else one for each value."""
    names = [json.dumps(value, sort_keys=True) for value in values]
    if not dimension.is_numeric or len(set(names)) <= _BINS:
        return np.unique(names, return_inverse=True)[1].astype(np.int64)
    numbers = np.array(values, dtype=np.float64)
    edges = np.quantile(numbers, np.arange(1, _BINS) / _BINS)
    return np.searchsorted(edges, numbers, side="right").astype(np.int64)


def _explained(objectives: NDArray[np.float64], bins: NDArray[np.int64]) -> float:
    """ε²: variance between bins, less that expected by chance, over the whole."""
    total = float(((objectives - objectives.mean()) ** 2).sum())
    within = sum(
        float(((part - part.mean()) ** 2).sum())
        for part in (objectives[bins == one] for one in np.unique(bins))
    )
    num_bins, count = len(np.unique(bins)), len(objectives)
    if count <= num_bins:
        return 0.0
    return (total - within - (num_bins - 1) * within / (count - num_bins)) / total


def table(trials: Sequence[Trial], space: Space, sign: int, last_report: int) -> list[str]:
    """Lines for a terminal, the best trial first, each with its settings."""
    keys = list(space)
    heading = ["trial", "status", "report", "objective", "s", *map(_short, keys)]
    rows = [heading]
    for trial in ranked(trials, sign):
        value, far = trial.objective, trial.reports[-1].report if trial.reports else 0
        rows.append(
            [
                str(trial.number),
                trial.status,
                f"{far}/{last_report}",
                "–" if value is None else f"{value:.4f}",
                f"{trial.seconds:.0f}",
                *(shown(trial.settings[key]) if key in trial.settings else "–" for key in keys),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    failed = [trial for trial in trials if trial.status == "failed"]
    return lines + [f"trial {trial.number} failed: {trial.message}" for trial in failed]


def importance_table(found: Sequence[Importance]) -> list[str]:
    """Lines for a terminal."""
    width = max(len(one.key) for one in found)
    lines = [f"{'':{width}}  share of variance  by chance  trials"]
    for one in found:
        share = "–" if one.share is None else f"{one.share:.2f}"
        chance = "–" if one.chance is None else f"{one.chance:.3f}"
        lines.append(f"{one.key:{width}}  {share:>17}  {chance:>9}  {one.num_trials:>6}")
    return lines


def _short(key: str) -> str:
    return key if len(key) <= _SHOWN_WIDTH else key.rpartition(".")[2]


def shown(value: Any) -> str:
    """A setting in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 2 * _SHOWN_WIDTH else f"{text[: 2 * _SHOWN_WIDTH - 1]}…"


def write_parquet(uri: str, trials: Sequence[Trial], space: Space) -> None:
    """A row for each trial: number, status, objective, its curve, and a column for each key.

    Keys whose values are no numbers are columns of JSON text; null is a key that a trial has not.
    """
    columns: dict[str, pa.Array] = {
        "trial": pa.array([trial.number for trial in trials], pa.int64()),
        "status": pa.array([trial.status for trial in trials], pa.string()),
        "objective": pa.array([trial.objective for trial in trials], pa.float64()),
        "reports": pa.array([len(trial.reports) for trial in trials], pa.int64()),
        "seconds": pa.array([trial.seconds for trial in trials], pa.float64()),
        "seed_values": pa.array([trial.seed_values for trial in trials], pa.list_(pa.float64())),
        "curve": pa.array(
            [[one.objective for one in trial.reports] for trial in trials], pa.list_(pa.float64())
        ),
        "message": pa.array([trial.message for trial in trials], pa.string()),
    }
    for key, dimension in space.items():
        values = [trial.settings.get(key) for trial in trials]
        columns[key] = _column(values, dimension)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    with filesystem.atomic_write(uri) as file:
        file.write(buffer.getvalue())


def _column(values: Sequence[Any], dimension: Dimension) -> pa.Array:
    if dimension.kind == "integer":
        return pa.array(values, pa.int64())
    numbers = [value for value in dimension.edges() if type(value) in (int, float)]
    if len(numbers) == len(dimension.edges()):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())


def comparison(figures: Mapping[str, Sequence[float]], sign: int) -> list[str]:
    """Mean ± deviation of winner and default over the same seeds, and of their difference.

    Args:
        figures: winner and default, in this order, one figure for each seed.
        sign: 1 where more is better.
    """
    (first, winner), (second, default) = figures.items()
    lines = [f"{name}: {mean_and_std(values)}" for name, values in figures.items()]
    differences = [a - b for a, b in zip(winner, default, strict=True)]
    better = sum(sign * one > 0 for one in differences)
    lines.append(
        f"{first} - {second}: {mean_and_std(differences)}, "
        f"{better} of {len(differences)} seeds better"
    )
    return lines


def mean_and_std(values: Sequence[float]) -> str:
    """`0.612 ± 0.014`; without the deviation for a single value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"
