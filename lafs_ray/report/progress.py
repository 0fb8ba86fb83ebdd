"""How the runs went: metrics over steps with their healthy ranges, and the warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lafs_ray.report import html
from lafs_ray.report.charts import Axes, Series, line_chart
from lafs_ray.report.runs import RunRecord

# Warnings beside a chart; a run may have thousands.
_MARKED, _LISTED = 40, 50
_DAMAGED = "damaged record"

# Title, unit, metrics, healthy range; those of `monitoring/collapse.py` for the SSL diagnostics.
_CHARTS: tuple[tuple[str, str, tuple[str, ...], tuple[float, float] | None], ...] = (
    ("loss", "nats", ("loss",), None),
    ("learning rate", "", ("lr",), None),
    ("gradient norm, largest", "", ("gradient_norm_max",), None),
    ("accuracy in training", "share", ("accuracy",), None),
    ("KL teacher to student", "nats", ("kl",), None),
    ("similarity to the frozen network", "cosine", ("similarity",), None),
    ("views that find their face", "share", ("found",), None),
    ("embedding std", "", ("embedding_std",), (0.2, 1e9)),
    ("KoLeo", "", ("koleo",), None),
    ("used prototypes", "share", ("used_prototypes",), (0.1, 1.0)),
    ("center norm", "", ("center_norm",), None),
    ("landmark spread", "px", ("landmark_spread",), None),
    ("landmark drift", "px", ("landmark_drift_px",), None),
    ("landmark regularizer", "", ("regularizer",), None),
    ("throughput", "images/s", ("images_per_s",), None),
    ("data wait", "share of time", ("wait_share",), (0.0, 0.2)),
)


def progress(runs: Sequence[RunRecord]) -> str:
    """Return the charts of all metrics that the runs have, and their warnings."""
    if not any(run.metrics for run in runs):
        return html.paragraph("No report has been written yet.", "note")
    marks = [
        (float(line["step"]), f"{run.name}: {line.get('kind', '')}")
        for run in runs
        for line in run.warnings[:_MARKED]
        if line.get("kind") != _DAMAGED
    ]
    charts = [_entropy(runs, marks)]
    for title, unit, names, band in _CHARTS:
        series = [_series(run, name, number) for number, run in enumerate(runs) for name in names]
        charts.append(line_chart(Axes(title, y=unit, band=band, marks=marks), series))
    explained = (
        "Shaded: the healthy range; outside it a run is warned of collapse (docs/watching.md). Dotted: the steps of "
        "warnings. Learning moves the teacher's entropy away from log K; a return to it is the uniform collapse."
    )
    return html.row(charts) + html.paragraph(explained, "faint") + _warnings(runs)


def _series(run: RunRecord, name: str, color: int, label: str | None = None, *, dashed: bool = False) -> Series:
    lines = [line for line in run.metrics if isinstance(line.get(name), int | float)]
    steps, values = [line["step"] for line in lines], [line[name] for line in lines]
    return Series(label or run.name, steps, values, color=color, dashed=dashed)


def _entropy(runs: Sequence[RunRecord], marks: Sequence[tuple[float, str]]) -> str:
    """Return the entropies of teacher (solid) and student (dashed), with log K where the runs share it."""
    pretraining = [(number, run) for number, run in enumerate(runs) if run.is_pretraining]
    prototypes = {run.config.get("head", {}).get("num_prototypes") for _, run in pretraining} - {None}
    level = (math.log(next(iter(prototypes))), "log K: uniform") if len(prototypes) == 1 else None
    series = []
    for number, run in pretraining:
        prefix = f"{run.name}, " if len(runs) > 1 else ""
        other = number if len(runs) > 1 else number + 1
        series.append(_series(run, "teacher_entropy", number, f"{prefix}teacher"))
        series.append(_series(run, "student_entropy", other, f"{prefix}student", dashed=True))
    return line_chart(Axes("entropy", y="nats", level=level, marks=marks), series)


def _warnings(runs: Sequence[RunRecord]) -> str:
    rows: list[list[str | int]] = []
    damaged = 0
    for run in runs:
        for line in run.warnings:
            if line.get("kind") == _DAMAGED:
                damaged += 1
            elif len(rows) < _LISTED:
                rows.append([run.name, int(line["step"]), str(line.get("kind", "")), str(line.get("text", ""))])
    text = f"{damaged:,} damaged record{'s' * (damaged != 1)} replaced by others." if damaged else ""
    none = "" if rows or damaged else "No warnings."
    return html.heading("Warnings") + html.paragraph(text or none) + html.table(["run", "step", "kind", "text"], rows)
