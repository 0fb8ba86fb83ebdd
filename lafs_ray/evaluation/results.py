"""Results of an evaluation: rows of metrics, tables, results.json and ROC plots."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.verification import RocCurve, carries_far


@dataclass(frozen=True, eq=False)
class ResultRow:
    """Metrics of one embedding.

    Args:
        name: of the embedding.
        centered: whether the mean embedding was subtracted.
        metrics: name → value, 0 … 1; None where it is undefined on this input.
        details: further values for results.json.
        curve: its ROC.
    """

    name: str
    centered: bool
    metrics: dict[str, float | None]
    details: dict[str, Any] = field(default_factory=dict)
    curve: RocCurve | None = None

    @property
    def title(self) -> str:
        """Name, and whether it is centered."""
        return f"{self.name}, centered" if self.centered else self.name

    def content(self) -> dict[str, Any]:
        """Return the row as plain values."""
        columns = {**self.metrics, **self.details}
        return {"embedding": self.name, "centered": self.centered, **columns}


@dataclass(frozen=True, eq=False)
class EvalResult:
    """Metrics of all embeddings on one input.

    Args:
        protocol: pairs, identities, templates or identification.
        uri: the input.
        counts: its sizes.
        rows: one for each embedding, plain and centered.
    """

    protocol: str
    uri: str
    counts: dict[str, int]
    rows: list[ResultRow]

    def __str__(self) -> str:
        sizes = [f"{value} {name.removeprefix('num_')}" for name, value in self.counts.items()]
        return "\n".join([f"{self.uri}: {', '.join(sizes)}", *table(self.rows), *self.caveats])

    @property
    def caveats(self) -> list[str]:
        """What the counts do not carry, as lines."""
        kinds = (
            ("TAR", "FAR", "different pairs", self.counts.get("num_pairs", 0) - self.counts.get("num_same", 0)),
            ("TPIR", "FPIR", "queries without mate", self.counts.get("num_queries_without_mate", 0)),
        )
        lines = []
        for rate, error_rate, cases, count in kinds:
            missing = [n for n, value in self.rows[0].metrics.items() if value is None and n.startswith(f"{rate}@")]
            names = [name for name in missing if not carries_far(count, float(name.partition("@")[2]))]
            if names:
                lines.append(
                    f"–: {count} {cases} carry no {', '.join(names)}; a {error_rate} needs 3 / {error_rate} of them"
                )
        return lines

    def content(self) -> dict[str, Any]:
        """Return the input and its rows as plain values."""
        rows = [row.content() for row in self.rows]
        return {"protocol": self.protocol, "input": self.uri, **self.counts, "rows": rows}


def table(rows: Sequence[ResultRow]) -> list[str]:
    """Format rows as the lines of a table, with a heading."""
    width = max(len(row.title) for row in rows)
    names = list(rows[0].metrics)
    widths = [max(len(name), 7) for name in names]
    heading = "  ".join(f"{name:>{size}}" for name, size in zip(names, widths, strict=True))
    lines = [f"{'':{width}}  {heading}"]
    for row in rows:
        cells = [
            f"{'–' if value is None else format(value, '.4f'):>{size}}"
            for value, size in zip(row.metrics.values(), widths, strict=True)
        ]
        lines.append(f"{row.title:{width}}  {'  '.join(cells)}")
    return lines


def write_results(folder: str, header: Mapping[str, Any], results: Sequence[EvalResult]) -> None:
    """Write results.json, and roc_<input>.png for each input with ROC curves, atomically.

    Args:
        folder: path or URI.
        header: what was evaluated, and with what.
        results: of each input.

    Raises:
        DataError: the folder cannot be written to.
    """
    content = {**header, "results": [one.content() for one in results]}
    files = {"results.json": (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()}
    drawn = [(one, {row.title: row.curve for row in one.rows if row.curve is not None}) for one in results]
    drawn = [(one, curves) for one, curves in drawn if curves]
    for (one, curves), name in zip(drawn, picture_names([one.uri for one, _ in drawn]), strict=True):
        # Imported here: training workers would wait half a second for matplotlib.
        from lafs_ray.evaluation.plots import as_png, roc_figure

        title = f"{one.uri.rstrip('/').rpartition('/')[2]}: {one.counts['num_pairs']:,} pairs"
        files[name] = as_png(roc_figure(title, curves, one.counts["num_pairs"] - one.counts["num_same"]))
    for name, data in files.items():
        with filesystem.atomic_write(filesystem.join(folder, name)) as file:
            file.write(data)


def picture_names(uris: Sequence[str]) -> list[str]:
    """Name a plot after each input, numbered where inputs have the same name."""
    names: list[str] = []
    for uri in uris:
        last = uri.partition("?")[0].rstrip("/").rpartition("/")[2].removesuffix(".bin")
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", last)
        numbered = (f"roc_{name}{suffix}.png" for suffix in ("", *(f"_{i}" for i in range(2, len(uris) + 2))))
        names.append(next(name for name in numbered if name not in names))
    return names
