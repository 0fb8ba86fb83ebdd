"""Charts and pages: what is drawn where, and that nothing from outside becomes markup."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.report import html
from lafs_ray.report.charts import Axes, Series, bars, histogram, line_chart, ticks
from tests.report.browser import needs_browser, opened


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 47, [10, 20, 30, 40]), (-0.02, 0.02, [-0.02, -0.01, 0, 0.01, 0.02])],
)
def test_ticks__round_values(low: float, high: float, expected: list[float]) -> None:
    """Ticks are multiples of 1, 2 or 5 times a power of ten, within the range."""
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks__logarithmic() -> None:
    """On a logarithmic axis they are powers of ten."""
    assert ticks(2e-4, 1, is_log=True) == pytest.approx([1e-3, 1e-2, 1e-1, 1])


def points(chart: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'<polyline points="([^"]*)"', chart)
    return [(float(x), float(y)) for x, y in (place.split(",") for place in found.split())]


def test_line_chart__places() -> None:
    """Larger values stand higher, later steps further right; values that are not finite leave no trace."""
    found = points(line_chart(Axes("loss"), [Series("a", [1, 2, 3, 4], [5.0, math.nan, 2.0, 1.0])]))
    assert len(found) == 3
    assert found[0][0] < found[1][0] < found[2][0]
    assert found[0][1] < found[1][1] < found[2][1]
    assert "nan" not in line_chart(Axes("x"), [Series("a", [1.0, math.inf], [1.0, 2.0])])


def test_line_chart__nothing_to_draw() -> None:
    """Without a point there is no chart; on a logarithmic axis 0 is none."""
    assert line_chart(Axes("x"), [Series("a", [], [])]) == ""
    assert line_chart(Axes("x", log_x=True), [Series("a", [0.0], [1.0])]) == ""
    assert histogram(Axes("x"), [("a", [])]) == ""
    assert bars("x", [], "y") == ""


def test_line_chart__legend_where_needed() -> None:
    """One line needs no legend, two do; a constant is drawn in the middle."""
    one, other = Series("first", [1, 2], [3.0, 3.0]), Series("second", [1, 2], [4.0, 5.0])
    assert 'class="legend"' not in line_chart(Axes("x"), [one])
    assert ">second</span>" in line_chart(Axes("x"), [one, other])
    (_, y), _ = points(line_chart(Axes("x"), [one]))
    assert 100 < y < 130


def test_histogram__shares() -> None:
    """The outline of a group has the share of its values in each bin as its height."""
    found = points(histogram(Axes("x"), [("", [0.0] * 30 + [1.0] * 10)], bins=2))
    heights = sorted({y for _, y in found})
    # 75 %, 25 % and the ground, from top to bottom: the second is twice as far from the first as from the third.
    assert (heights[1] - heights[0]) == pytest.approx(2 * (heights[2] - heights[1]), abs=0.3)


def test_page__escapes_what_comes_from_outside() -> None:
    """Names of files, runs and settings are text; secrets in them are masked."""
    bad = "<script>alert(1)</script>"
    parts = [html.table([bad], [[bad]]), html.notes([bad]), html.figure("", bad), html.paragraph("s3://a:b@host/x")]
    parts.append(line_chart(Axes(bad, level=(1.0, bad), marks=[(1.0, bad)]), [Series(bad, [1, 2], [1.0, 2.0])] * 2))
    content = html.page(bad, bad, [html.Section(bad, "".join(parts))]).decode()
    assert "<script" not in content
    assert "a:b@" not in content


def test_table__numbers() -> None:
    """Floats have four decimals, thousands a comma, and what is missing a dash."""
    content = html.table(["a", "b", "c"], [[0.5, 1234, None]])
    assert "0.5000" in content
    assert "1,234" in content
    assert "–" in content


@needs_browser
def test_page__in_a_browser(tmp_path: Path) -> None:
    """A page of every part: no console message, no request, every picture shown, nothing wider than the window."""
    faces = np.random.default_rng(0).integers(0, 255, (7, 40, 40, 3)).astype(np.uint8)
    sheet = html.picture(html.contact_sheet(faces, 4), "faces")
    chart = line_chart(Axes("loss", band=(0, 2), level=(1.5, "log K")), [Series("a", [1, 2, 3], [3.0, 2.0, 1.0])])
    parts = [html.figure(sheet, "seven faces"), chart, bars("b", [("lr", 0.7)], "share"), html.notes(["careful"])]
    path = tmp_path / "page.html"
    path.write_bytes(html.page("title", "subtitle", [html.Section("one", "".join(parts)), html.Section("two", "")]))
    seen = opened(path)
    assert (seen["images"], seen["broken"], seen["unnamed"], seen["requests"]) == (1, 0, 0, 0)
    assert seen["drawings"] == 2
    assert seen["wide"] <= 0
    assert seen["smallest"] >= 12


def test_line_chart__whole_steps_and_named_marks() -> None:
    """Steps have no fractional ticks; what the only dotted line means stands below the chart, not that of many."""
    chart = line_chart(Axes("loss", marks=[(2, "threshold")]), [Series("a", [2], [1.0])])
    assert ">2</text>" in chart
    assert ">1.95<" not in chart
    assert '<i class="dotted"></i>threshold' in chart
    several = [(1.0, "step 1: spike"), (2.0, "step 2: spike")]
    assert "dotted" not in line_chart(Axes("loss", marks=several), [Series("a", [1, 2], [1.0, 2.0])])
