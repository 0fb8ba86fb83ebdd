"""Report of a sweep: its trials, what decides, whether the winner stands out, and its confirmation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lafs_ray.data.io import filesystem
from lafs_ray.data.io.json_text import read_json
from lafs_ray.report import html
from lafs_ray.report.charts import Axes, Series, bars, line_chart
from lafs_ray.tuning.config import SweepConfig
from lafs_ray.tuning.confirmation import comparison
from lafs_ray.tuning.results import Trial, best, ranked
from lafs_ray.tuning.significance import doubts, eval_sample
from lafs_ray.tuning.sweep_dir import TrialDir, read_settings

_LISTED = 60
# Fewer trials rank nothing.
_MIN_TRIALS = 4


@dataclass(frozen=True, eq=False)
class SweepRecord:
    """A sweep as its folder describes it.

    Args:
        uri: the folder.
        config: its settings.
        base: settings of the default.
        trials: all that have a record.
        confirmation: content of confirm.json; None before it.
    """

    uri: str
    config: SweepConfig
    base: Mapping[str, Any]
    trials: Sequence[Trial]
    confirmation: Mapping[str, Any] | None


def is_sweep(uri: str) -> bool:
    """Return whether a folder is that of a sweep."""
    return filesystem.exists(filesystem.join(uri, "sweep.json"))


def read_sweep_folder(uri: str) -> SweepRecord:
    """Read the folder of a sweep.

    Raises:
        UserError: a file in it is damaged.
    """
    config, base = read_settings(uri)
    folder = filesystem.join(uri, "trials")
    names = sorted(
        name.split("/")[0] for name in filesystem.list_names(folder, recursive=True) if name.endswith("/trial.json")
    )
    found = [TrialDir(filesystem.join(folder, name)).read() for name in names if name.isdecimal()]
    confirm = filesystem.join(uri, "confirm.json")
    confirmation = read_json(confirm) if filesystem.exists(confirm) else None
    return SweepRecord(uri, config, base, [one for one in found if one is not None], confirmation)


def sweep_sections(sweep: SweepRecord) -> list[html.Section]:
    """Return the parts of the page."""
    return [
        html.Section("What it is", _facts(sweep)),
        html.Section("Winner", _winner(sweep)),
        html.Section("Trials", _curves(sweep) + _table(sweep)),
        html.Section("What decides", _keys(sweep)),
    ]


def _facts(sweep: SweepRecord) -> str:
    objective = sweep.config.objective
    rows = [
        ["folder", sweep.uri],
        ["task", sweep.config.task],
        ["objective", f"{objective.metric}, {'minimized' if objective.sign < 0 else 'maximized'}"],
        ["evaluated on", str(objective.pairs or objective.identities or "the training loss")],
        ["seeds", ", ".join(map(str, objective.seeds))],
        ["searcher, scheduler", f"{sweep.config.searcher.kind}, {sweep.config.scheduler.kind}"],
        ["trials with a record", str(len(sweep.trials))],
    ]
    return html.table(["", ""], rows)


def _winner(sweep: SweepRecord) -> str:
    objective = sweep.config.objective
    winner = best(sweep.trials, objective.sign)
    if winner is None:
        return html.paragraph("No trial has a report.", "note")
    text = f"Trial {winner.number}: {objective.metric} {winner.objective:.4f}, {winner.status}."
    found = [f"Not significant: {line}" for line in doubts(sweep.trials, winner, eval_sample(objective))]
    rows = [[key, _text(_default(sweep, key)), _text(winner.settings.get(key))] for key in sweep.config.space]
    parts = [html.paragraph(text), html.notes(found), html.table(["setting", "default", "winner"], rows)]
    if sweep.confirmation:
        lines = comparison(sweep.confirmation["winner"], sweep.confirmation["default"])
        seeds = len(sweep.confirmation["seeds"])
        heading = html.heading(f"Confirmation: {sweep.confirmation['metric']} over {seeds} new seeds on unseen faces")
        parts.append(heading + "".join(html.paragraph(line) for line in lines))
    else:
        parts.append(
            html.notes(["No confirmation: the winner's own objective is biased upwards, as the best of many."])
        )
    return "".join(parts)


def _curves(sweep: SweepRecord) -> str:
    order = ranked(sweep.trials, sweep.config.objective.sign)
    series = [
        Series(f"trial {one.number}", [r.report for r in one.reports], [r.objective for r in one.reports])
        for one in order
        if one.reports
    ]
    chart = line_chart(Axes("objective over reports", x="report", y=sweep.config.objective.metric), series[:8])
    text = "The best eight trials are drawn." if len(series) > 8 else ""
    return chart + html.paragraph(text, "faint")


def _table(sweep: SweepRecord) -> str:
    keys = list(sweep.config.space)
    order = ranked(sweep.trials, sweep.config.objective.sign)
    rows = [
        [str(t.number), t.status, t.objective, t.last_report, *(_text(t.settings.get(key)) for key in keys), t.message]
        for t in order[:_LISTED]
    ]
    return html.table(["trial", "status", "objective", "reports", *keys, "message"], rows)


def _keys(sweep: SweepRecord) -> str:
    """Return the objective over each key with the default, and the keys by how much they matter."""
    at = min((max(r.report for r in t.reports) for t in sweep.trials if t.reports), default=0)
    values = [(t, t.objective_at(at)) for t in sweep.trials]
    known = [(trial, value) for trial, value in values if value is not None]
    charts = []
    for key, dimension in sweep.config.space.items():
        points = [(trial.settings[key], value) for trial, value in known if key in trial.settings]
        numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in points)
        default = _default(sweep, key)
        if not points:
            continue
        places = [float(x) for x, _ in points] if numeric else [float(_place(dimension, x)) for x, _ in points]
        marks = []
        if numeric and isinstance(default, int | float):
            marks = [(float(default), "default")]
        elif not numeric:
            marks = [(float(_place(dimension, default)), "default")]
        axes = Axes(key, x=_axis(dimension, numeric), y=sweep.config.objective.metric, marks=marks)
        is_log = numeric and "log" in dimension.kind
        axes = Axes(axes.title, x=axes.x, y=axes.y, marks=axes.marks, log_x=is_log)
        charts.append(line_chart(axes, [Series("trials", places, [value for _, value in points], points=True)]))
    text = f"All trials at report {at}, the last that all have reached. Dotted: the default, which is no trial."
    return html.row(charts) + html.paragraph(text, "faint") + _importance(sweep, known)


def _importance(sweep: SweepRecord, known: Sequence[tuple[Trial, float]]) -> str:
    """Return importance by PED-ANOVA from ten trials on, before that rank correlations, with a word on their error."""
    if len(known) < _MIN_TRIALS:
        return html.paragraph(f"{len(known)} trials rank no keys; {_MIN_TRIALS} are needed.", "note")
    # Imported here: Optuna takes a second.
    from lafs_ray.tuning.analysis import comparable_study, importances

    found = importances(comparable_study(sweep.config, sweep.trials))
    if found:
        return bars("importance (PED-ANOVA)", list(found.items()), "share")
    ranks = []
    for key, dimension in sweep.config.space.items():
        points = [(_place(dimension, trial.settings[key]), value) for trial, value in known if key in trial.settings]
        if len(points) >= _MIN_TRIALS:
            ranks.append((key, abs(_rank_correlation([x for x, _ in points], [y for _, y in points]))))
    ranks.sort(key=lambda one: -one[1])
    error = 1.96 / np.sqrt(max(len(known) - 1, 1))
    text = (
        f"{len(known)} trials are too few for an importance. Drawn are rank correlations with the objective, without "
        f"their sign; values below {error:.2f} are within chance."
    )
    return html.notes([text]) + bars("rank correlation with the objective", ranks, "|ρ|")


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    first, second = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (x, y))
    return float(np.corrcoef(first, second)[0, 1])


def _place(dimension: Any, value: Any) -> float:
    """Return a number for a value: itself, or its place among the choices."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    values = [_text(one) for one in (dimension.values or [])]
    return float(values.index(_text(value))) if _text(value) in values else -1.0


def _axis(dimension: Any, numeric: bool) -> str:
    if numeric:
        return ""
    return ", ".join(f"{number}: {_text(value)}" for number, value in enumerate(dimension.values or []))[:60]


def _default(sweep: SweepRecord, key: str) -> Any:
    value: Any = sweep.base
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
