"""Tables of `benchmarks.real_faces`: means over seeds, and differences over the same pairs.

Seeds of a row are averaged pair by pair before a bootstrap over pairs, so its standard error is that of the pairs; the
spread over seeds stands beside it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.bool_]
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Row:
    """A result of one embedding.

    Args:
        name: of the row that it is in, without its seed.
        seed: of several; None: there is one.
        accuracy: of ten folds.
        auc: area under the ROC.
        correct: which pairs are decided correctly.
    """

    name: str
    seed: int | None
    accuracy: float
    auc: float
    correct: Correct


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each name, its seeds, in the order of the first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return found


def difference(one: Sequence[Row], other: Sequence[Row]) -> tuple[float, float]:
    """Return the difference of two mean accuracies over the same pairs, and its standard error by bootstrap.

    Args:
        one: the seeds of an embedding.
        other: those of another.
    """
    mean = statistics.mean(row.accuracy for row in one) - statistics.mean(row.accuracy for row in other)
    gains = np.mean([row.correct for row in one], axis=0) - np.mean([row.correct for row in other], axis=0)
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(gains), counts / len(gains), size=_RESAMPLES)
    return mean, float((drawn @ values / len(gains)).std())


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Return a mean, with the standard deviation of several values."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def frozen_table(rows: Sequence[Row], baseline: str) -> str:
    """Return the rows as Markdown, each beside the baseline.

    Args:
        rows: of all seeds.
        baseline: the name of its row.
    """
    named = by_name(rows)
    lines = ["| embedding | seeds | accuracy | AUC | minus baseline |", "|---|---|---|---|---|"]
    for name, seeds in named.items():
        accuracy, auc = ([getattr(row, key) for row in seeds] for key in ("accuracy", "auc"))
        mean, error = difference(seeds, named[baseline])
        cells = [name, str(len(seeds)), mean_and_spread(accuracy), mean_and_spread(auc), f"{mean:+.3f} ± {error:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def few_table(rows: Sequence[Row], shots: Sequence[str]) -> str:
    """Return accuracies by arm and number of labeled images, as Markdown.

    Args:
        rows: of all arms and seeds, named by `few_name`.
        shots: the numbers.
    """
    named = by_name(rows)
    arms = list(dict.fromkeys(name.split(", ", 1)[1] for name in named))
    lines = [f"| images per identity | {' | '.join(shots)} |", f"|---|{'---|' * len(shots)}"]
    for arm in arms:
        found = [named.get(few_name(shot, arm), []) for shot in shots]
        cells = [mean_and_spread([row.accuracy for row in seeds]) if seeds else "–" for seeds in found]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def few_name(shot: str, arm: str) -> str:
    """Return the name of a row of few labels."""
    return f"{shot} labels, {arm}"


def difference_table(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> str:
    """Return differences of rows as Markdown; pairs of which one is missing are left out.

    Args:
        rows: of all seeds.
        pairs: names of two rows, the second subtracted.
    """
    named = by_name(rows)
    lines = ["| difference | accuracy |", "|---|---|"]
    for one, other in pairs:
        if one in named and other in named:
            mean, error = difference(named[one], named[other])
            lines.append(f"| {one} − {other} | {mean:+.3f} ± {error:.3f} |")
    return "\n".join(lines)


def time_table(folder: Path) -> str:
    """Return the processor time of all runs that were trained, as Markdown.

    Args:
        folder: of one file of seconds a run.
    """
    lines = ["| run | processor minutes |", "|---|---|"]
    total, groups = 0.0, dict[str, list[float]]()
    for path in sorted(folder.glob("*.json")):
        seconds: Any = json.loads(path.read_text())
        total += seconds
        groups.setdefault(path.stem.rsplit("-", 1)[0], []).append(seconds / 60)
    lines += [f"| {name} ({len(each)}) | {mean_and_spread(each, 1)} |" for name, each in groups.items()]
    return "\n".join([*lines, f"| all | {total / 60:.0f} |"])
