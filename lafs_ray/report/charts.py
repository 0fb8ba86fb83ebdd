"""Line charts, histograms and scatter plots as inline SVG, whose colors follow the page's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lafs_ray.report.html import escape

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 40
_MAX_POINTS = 600
_NUM_COLORS = 8


@dataclass(frozen=True)
class Series:
    """Points of one line.

    Args:
        name: in the legend.
        x: finite or not; points that are not finite are left out.
        y: as many.
        color: number of the color; None: by its place.
        dashed: for references.
        points: drawn as dots instead of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int | None = None
    dashed: bool = False
    points: bool = False


@dataclass(frozen=True)
class Axes:
    """Title, axes and what is drawn behind the lines.

    Args:
        title: of the chart.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log_x: logarithmic; values up to 0 are left out.
        log_y: the same of the vertical axis.
        range_x: None: from the data.
        range_y: None: from the data.
        band: range of healthy y, shaded.
        level: y of a reference line, and its name.
        marks: x of vertical lines, such as warnings, and their names.
    """

    title: str
    x: str = "step"
    y: str = ""
    log_x: bool = False
    log_y: bool = False
    range_x: tuple[float, float] | None = None
    range_y: tuple[float, float] | None = None
    band: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)


def line_chart(axes: Axes, series: Sequence[Series], *, legend: bool | None = None) -> str:
    """Return a chart with its legend below it; empty without any point.

    Args:
        axes: of the chart.
        series: lines and dots.
        legend: None: where there are two or more.
    """
    shown = [(number, one, *_finite(axes, one)) for number, one in enumerate(series)]
    shown = [entry for entry in shown if len(entry[2])]
    if not shown:
        return ""
    xs, ys = (np.concatenate([entry[n] for entry in shown]) for n in (2, 3))
    extra = [axes.level[0]] if axes.level else []
    whole = bool((xs == np.round(xs)).all())
    frame = _Frame(axes, axes.range_x or _span(xs, [], axes.log_x), axes.range_y or _span(ys, extra, axes.log_y), whole)
    parts = [frame.background()]
    for number, one, x, y in shown:
        color = f"var(--c{(one.color if one.color is not None else number) % _NUM_COLORS})"
        parts.append(frame.dots(x, y, color) if one.points else frame.line(x, y, color, one.dashed))
    names = [(one, one.color if one.color is not None else number) for number, one, _, _ in shown]
    has_legend = len(names) > 1 if legend is None else legend
    items = "".join(
        f'<span><i style="background:var(--c{color % _NUM_COLORS})"></i>{escape(one.name)}</span>'
        for one, color in names
        if has_legend
    )
    # What dotted lines mean; many, as of warnings, have it as a tooltip alone.
    marks = {name for value, name in axes.marks if frame.x[0] <= value <= frame.x[1]}
    if len(marks) == 1:
        items += f'<span><i class="dotted"></i>{escape(marks.pop())}</span>'
    below = f'<div class="legend" style="max-width:{_WIDTH}px">{items}</div>' if items else ""
    return f"<div>{frame.wrap(''.join(parts))}{below}</div>"


def histogram(axes: Axes, groups: Sequence[tuple[str, Sequence[float]]], bins: int = 30) -> str:
    """Return outlines of histograms over common bins, each as shares of its group."""
    values = [np.asarray(group, float)[np.isfinite(group)] for _, group in groups]
    filled = [one for one in values if len(one)]
    if not filled:
        return ""
    low, high = min(float(one.min()) for one in filled), max(float(one.max()) for one in filled)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    series = []
    for (name, _), one in zip(groups, values, strict=True):
        shares = np.histogram(one, edges)[0] / max(len(one), 1)
        series.append(Series(name, np.repeat(edges, 2).tolist(), [0.0, *np.repeat(shares, 2).tolist(), 0.0]))
    return line_chart(axes, series)


def bars(title: str, values: Sequence[tuple[str, float]], label: str) -> str:
    """Return horizontal bars with their names and values."""
    if not values:
        return ""
    step, left = 24, 170
    top = max(max(value for _, value in values), 1e-12)
    parts = []
    for number, (name, value) in enumerate(values):
        y = 30 + number * step
        width = (_WIDTH - left - 60) * max(value, 0) / top
        parts.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="16" style="fill:var(--c0)"/>'
            f'<text x="{left + width + 5:.1f}" y="{y + 12}">{value:.3g}</text>'
        )
    height = 40 + step * len(values)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><text x="0" y="14" font-weight="600">{escape(title)}</text>{"".join(parts)}'
        f'<text x="{left}" y="{height - 2}" style="fill:var(--faint)">{escape(label)}</text></svg>'
    )


def _finite(axes: Axes, one: Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that can be drawn, few enough of them."""
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    kept = np.isfinite(x) & np.isfinite(y)
    kept &= (x > 0) | (not axes.log_x)
    kept &= (y > 0) | (not axes.log_y)
    x, y = x[kept], y[kept]
    if len(x) > _MAX_POINTS:
        chosen = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
        x, y = x[chosen], y[chosen]
    return x, y


def _span(values: np.ndarray, extra: Sequence[float], is_log: bool) -> tuple[float, float]:
    low, high = min([float(values.min()), *extra]), max([float(values.max()), *extra])
    if is_log:
        return low, high if high > low else low * 10
    if high == low:
        reach = abs(low) * 0.05 or 0.5
        return low - reach, high + reach
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


class _Frame:
    """Maps values to places, and draws what is behind the lines."""

    def __init__(self, axes: Axes, x: tuple[float, float], y: tuple[float, float], whole: bool) -> None:
        self.axes, self.x, self.y, self.whole = axes, x, y, whole
        self.at_x = _scale(x, (_LEFT, _WIDTH - _RIGHT), axes.log_x)
        self.at_y = _scale(y, (_HEIGHT - _BOTTOM, _TOP), axes.log_y)

    def background(self) -> str:
        axes, parts = self.axes, []
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        if axes.band:
            low, high = (min(max(value, self.y[0]), self.y[1]) for value in axes.band)
            top = self.at_y(high)
            parts.append(
                f'<rect x="{_LEFT}" y="{top:.1f}" width="{right - _LEFT}" height="{self.at_y(low) - top:.1f}" '
                'style="fill:var(--band);opacity:.12"/>'
            )
        for value in ticks(*self.y, axes.log_y):
            y = self.at_y(value)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" style="stroke:var(--grid)"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        places = ticks(*self.x, axes.log_x)
        # Of steps and reports there are no halves.
        for value in [one for one in places if one == round(one)] if self.whole else places:
            x = self.at_x(value)
            parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" style="stroke:var(--grid)"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_number(value)}</text>')
        for value, name in axes.marks:
            if self.x[0] <= value <= self.x[1]:
                x = self.at_x(value)
                path = f'<path d="M{x:.1f} {_TOP}V{bottom}" style="stroke:var(--warn);stroke-dasharray:2 3"/>'
                parts.append(f"<g><title>{escape(name)}</title>{path}</g>")
        if axes.level:
            # The name stands below the line where there is no room above it.
            y = self.at_y(axes.level[0])
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" style="stroke:var(--faint);stroke-dasharray:5 4"/>')
            below = y - 4 if y > _TOP + 14 else y + 13
            place = f'x="{right - 3}" y="{below:.1f}" text-anchor="end" style="fill:var(--faint)"'
            parts.append(f"<text {place}>{escape(axes.level[1])}</text>")
        return "".join(parts)

    def line(self, x: np.ndarray, y: np.ndarray, color: str, dashed: bool) -> str:
        places = " ".join(f"{self.at_x(a):.1f},{self.at_y(b):.1f}" for a, b in zip(x, y, strict=True))
        dash = ";stroke-dasharray:5 4" if dashed else ""
        dot = self.dots(x, y, color) if len(x) == 1 else ""
        return f'<polyline points="{places}" style="fill:none;stroke:{color};stroke-width:1.8{dash}"/>{dot}'

    def dots(self, x: np.ndarray, y: np.ndarray, color: str) -> str:
        return "".join(
            f'<circle cx="{self.at_x(a):.1f}" cy="{self.at_y(b):.1f}" r="3" style="fill:{color};opacity:.8"/>'
            for a, b in zip(x, y, strict=True)
        )

    def wrap(self, content: str) -> str:
        axes, bottom, right = self.axes, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        faint = 'style="fill:var(--faint)"'
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
            f'aria-label="{escape(axes.title)}">'
            f'<text x="0" y="14" font-weight="600">{escape(axes.title)}</text>{content}'
            f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" style="fill:none;stroke:var(--faint)"/>'
            f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle" {faint}>{escape(axes.x)}</text>'
            f'<text x="{right}" y="14" text-anchor="end" {faint}>{escape(axes.y)}</text></svg>'
        )


def _scale(values: tuple[float, float], places: tuple[float, float], is_log: bool) -> Callable[[float], float]:
    low, high = (math.log10(max(value, 1e-300)) for value in values) if is_log else values
    width = (high - low) or 1.0

    def at(value: float) -> float:
        value = math.log10(max(value, 1e-300)) if is_log else value
        return places[0] + (places[1] - places[0]) * min(max((value - low) / width, -0.02), 1.02)

    return at


def ticks(low: float, high: float, is_log: bool = False) -> list[float]:
    """Return three to seven round values within a range."""
    if is_log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        step = max((last - first) // 6 + 1, 1)
        powers = [10.0**power for power in range(first, last + 1, step)]
        return powers if len(powers) > 1 else ticks(low, high)
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000 and value == round(value):
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
