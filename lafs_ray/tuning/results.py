"""Results of trials: reports, ranking, table and Parquet file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lafs_ray.tuning.search_space import Settings, Space

Status = Literal["waiting", "running", "finished", "stopped", "failed"]

_LABEL_WIDTH = 14


@dataclass(frozen=True)
class Report:
    """One evaluation of a trial.

    Args:
        report: its number, from 1.
        seed: `run.seed` of the run that was evaluated.
        step: optimizer step of the checkpoint.
        value: its metric.
        objective: the trial's objective so far: the first seed's metric, then the mean over seeds.
        seconds: since the report before.
        generation: how many copies of other trials the trial had continued from (pbt).
        attempt: the start of the sweep in which it was made.
    """

    report: int
    seed: int
    step: int
    value: float
    objective: float
    seconds: float
    generation: int = 0
    attempt: str = ""


@dataclass(frozen=True)
class Trial:
    """Record of a trial, as it is kept in its directory.

    Args:
        number: from 0.
        settings: current values of the active keys of the space; pbt changes them.
        status: waiting until the first report; stopped is by the scheduler.
        reports: in order.
        message: why it failed.
        generation: how many copies of other trials it has continued from (pbt).
        start: report at which this generation's copy was taken; 0 without a copy.
    """

    number: int
    settings: Settings
    status: Status = "waiting"
    reports: tuple[Report, ...] = ()
    message: str = ""
    generation: int = 0
    start: int = 0

    @property
    def last_report(self) -> int:
        """Number of this generation's newest report, or of the copy that it began with."""
        own = [one.report for one in self.reports if one.generation == self.generation]
        return max(own, default=self.start)

    @property
    def objective(self) -> float | None:
        """The newest objective."""
        return self.reports[-1].objective if self.reports else None

    def objective_at(self, report: int) -> float | None:
        """Return the objective at a report, None if the trial did not reach it."""
        return next((o.objective for o in reversed(self.reports) if o.report == report), None)

    @property
    def seed_values(self) -> list[float]:
        """The last metric of each seed."""
        return [*{one.seed: one.value for one in self.reports}.values()]

    @property
    def seconds(self) -> float:
        """Time of training and evaluation."""
        return sum(one.seconds for one in self.reports)


def ranked(trials: Sequence[Trial], sign: int) -> list[Trial]:
    """Return finished trials by objective, then the others by progress and objective.

    Args:
        trials: of a sweep.
        sign: 1 to maximize, -1 to minimize.
    """

    def key(trial: Trial) -> tuple[Any, ...]:
        value = trial.objective
        loss = float("inf") if value is None else -sign * value
        return trial.status != "finished", -trial.last_report, loss, trial.number

    return sorted(trials, key=key)


def best(trials: Sequence[Trial], sign: int) -> Trial | None:
    """Return the winner: the best finished trial, or the one with most progress if none has."""
    candidates = [trial for trial in trials if trial.reports and trial.status != "failed"]
    return ranked(candidates, sign)[0] if candidates else None


def table(trials: Sequence[Trial], space: Space, sign: int, last_report: int) -> list[str]:
    """Return a table of the trials and their settings, the best first; then why trials failed."""
    headings = [key if len(key) <= _LABEL_WIDTH else key.rpartition(".")[2] for key in space]
    rows = [["trial", "status", "report", "objective", "s", *headings]]
    for trial in ranked(trials, sign):
        value = trial.objective
        rows.append(
            [
                str(trial.number),
                trial.status,
                f"{trial.last_report}/{last_report}",
                "–" if value is None else f"{value:.4f}",
                f"{trial.seconds:.0f}",
                *(_cell(trial.settings[key]) if key in trial.settings else "–" for key in space),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    failed = [trial for trial in trials if trial.status == "failed"]
    return lines + [f"trial {trial.number} failed: {trial.message}" for trial in failed]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 2 * _LABEL_WIDTH else f"{text[: 2 * _LABEL_WIDTH - 1]}…"


def to_parquet(trials: Sequence[Trial], space: Space) -> bytes:
    """Return a Parquet file, one row per trial: number, status, objective, curve, settings.

    A key whose values are not all numbers is a column of JSON text; an inactive key is null.
    """
    real, integer, text = pa.float64(), pa.int64(), pa.string()
    columns: dict[str, pa.Array] = {
        "trial": pa.array([trial.number for trial in trials], integer),
        "status": pa.array([trial.status for trial in trials], text),
        "objective": pa.array([trial.objective for trial in trials], real),
        "reports": pa.array([len(trial.reports) for trial in trials], integer),
        "seconds": pa.array([trial.seconds for trial in trials], real),
        "seed_values": pa.array([trial.seed_values for trial in trials], pa.list_(real)),
        "curve": pa.array([[r.objective for r in t.reports] for t in trials], pa.list_(real)),
        "message": pa.array([trial.message for trial in trials], text),
    }
    for key, dimension in space.items():
        values = [trial.settings.get(key) for trial in trials]
        is_number = all(type(value) in (int, float) for value in dimension.edges())
        if dimension.kind == "integer":
            columns[key] = pa.array(values, integer)
        elif is_number:
            columns[key] = pa.array([None if v is None else float(v) for v in values], real)
        else:
            columns[key] = pa.array([None if v is None else json.dumps(v) for v in values], text)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
