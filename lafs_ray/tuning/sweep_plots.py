"""Pictures of a sweep, drawn without a display."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lafs_ray.tuning.results import Importance, Trial, best, common_report, shown
from lafs_ray.tuning.space import Dimension, Space

_COLUMNS = 3
_FINISHED, _STOPPED, _WINNER = "tab:blue", "tab:gray", "tab:red"


def objective_figure(trials: Sequence[Trial], space: Space, metric: str, sign: int) -> Figure:
    """The last objective over each key: finished trials filled, stopped ones hollow, winner red."""
    columns = min(_COLUMNS, len(space))
    rows = -(-len(space) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    winner = best(trials, sign)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (key, dimension) in zip(panels, space.items(), strict=False):
        for trial in trials:
            if key in trial.settings and trial.objective is not None:
                is_finished = trial.status == "finished"
                edge = _WINNER if trial is winner else _FINISHED if is_finished else _STOPPED
                face = edge if is_finished else "none"
                at = _at(trial.settings[key], dimension)
                axes.scatter(at, trial.objective, s=28, facecolors=face, edgecolors=edge)
        _label(axes, "x", key, dimension)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[len(space) :]:
        axes.set_axis_off()
    return figure


def interaction_figure(trials: Sequence[Trial], space: Space, keys: Sequence[str]) -> Figure:
    """Two keys against each other; the color is the objective at the last report of all trials."""
    first, second = keys
    at = common_report(trials)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    points = [
        (*(_at(trial.settings[key], space[key]) for key in keys), value)
        for trial in trials
        if first in trial.settings
        and second in trial.settings
        and (value := trial.objective_at(at)) is not None
    ]
    x, y, colors = ([point[axis] for point in points] for axis in range(3))
    drawn = axes.scatter(x, y, c=colors, cmap="viridis", s=60, edgecolors="black", linewidths=0.4)
    _label(axes, "x", first, space[first])
    _label(axes, "y", second, space[second])
    figure.colorbar(drawn, ax=axes, label=f"objective at report {at}")
    axes.grid(alpha=0.3)
    return figure


def curves_figure(trials: Sequence[Trial], metric: str, sign: int, reports: int) -> Figure:
    """Objective over reports; a cross ends the stopped trials; the winner is red.

    Args:
        trials: of the sweep.
        metric: its name.
        sign: 1 where more is better.
        reports: on the way of the first seed; behind the dotted line more seeds join the mean.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    winner = best(trials, sign)
    for trial in trials:
        if not trial.reports:
            continue
        x = [one.report for one in trial.reports]
        y = [one.objective for one in trial.reports]
        is_finished, is_winner = trial.status == "finished", trial is winner
        color = _WINNER if is_winner else _FINISHED if is_finished else _STOPPED
        width = 2.5 if is_winner else 1.2
        axes.plot(x, y, color=color, linewidth=width, alpha=0.8, zorder=3 if is_winner else 2)
        marker = {"finished": "o", "stopped": "x"}.get(trial.status, "|")
        axes.plot(x[-1], y[-1], marker, color=color)
    if any(one.report > reports for trial in trials for one in trial.reports):
        axes.axvline(reports + 0.5, linestyle=":", color="black")
    axes.plot([], [], "x", color=_STOPPED, label="stopped")
    axes.plot([], [], "o", color=_FINISHED, label="finished")
    axes.plot([], [], "o-", color=_WINNER, label="winner")
    axes.set_xlabel("report")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def importance_figure(found: Sequence[Importance]) -> Figure:
    """Share of the objective's variance that goes with each key, and the chance of as much."""
    figure = Figure(figsize=(6.5, 0.8 + 0.45 * len(found)), layout="constrained")
    axes = figure.subplots()
    ordered = [*reversed(found)]
    shares = [one.share or 0.0 for one in ordered]
    axes.barh([one.key for one in ordered], shares, color=_FINISHED)
    for place, one in enumerate(ordered):
        text = "too few trials" if one.chance is None else f"p = {one.chance:.3f}"
        axes.text(shares[place] + 0.01, place, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("share of the objective's variance (ε²)")
    return figure


def _at(value: Any, dimension: Dimension) -> float:
    """Where a value lies on its axis: listed ones stand at their number."""
    if dimension.is_numeric:
        return float(value)
    return float([json.dumps(one) for one in dimension.values].index(json.dumps(value)))


def _label(axes: Axes, side: str, key: str, dimension: Dimension) -> None:
    label, scale, ticks = (
        (axes.set_xlabel, axes.set_xscale, axes.set_xticks)
        if side == "x"
        else (axes.set_ylabel, axes.set_yscale, axes.set_yticks)
    )
    label(key)
    if dimension.kind == "log_uniform":
        scale("log")
    elif not dimension.is_numeric:
        ticks(range(len(dimension.values)), [shown(value) for value in dimension.values])
