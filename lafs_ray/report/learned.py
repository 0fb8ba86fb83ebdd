"""What the runs learned: evaluations over time, pairs with intervals and paired tests, nearest neighbors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import LabeledSet, PairSet
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import center
from lafs_ray.evaluation.neighbors import neighbor_accuracies
from lafs_ray.evaluation.protocols import PAIR_FARS, RAW_PIXELS, WHITENED, centerings, raw_pixel_distances
from lafs_ray.evaluation.statistics import bootstrap_interval, rate_error
from lafs_ray.evaluation.verification import (
    RocCurve,
    carries_far,
    kfold_accuracy,
    kfold_correct,
    pair_distances,
    roc_curve,
    tar_at_far,
)
from lafs_ray.report import html
from lafs_ray.report.charts import Axes, Series, histogram, line_chart
from lafs_ray.report.networks import Network
from lafs_ray.report.runs import RunRecord

Floats = NDArray[np.float64]

# Names in the paired tests, plain and centered ones, up to which every two are compared.
_FOLDS, _MOST_TESTED = 10, 6
_CENTERED = ", centered"
_EVALUATIONS = {"pair_accuracy": 0.5, "pair_auc": 0.5, "identity_accuracy": None}


def evaluations_over_time(runs: Sequence[RunRecord]) -> str:
    """Return a chart for each metric of the online evaluation: plain solid, centered dashed."""
    charts = []
    for metric, chance in _EVALUATIONS.items():
        series = []
        for number, run in enumerate(runs):
            for name, label in ((metric, run.name), (f"{metric}_centered", f"{run.name}, centered")):
                lines = [line for line in run.evaluations if line.get(name) is not None]
                steps, values = [line["step"] for line in lines], [line[name] for line in lines]
                series.append(Series(label, steps, values, color=number, dashed=name != metric))
        level = None if chance is None else (chance, "chance")
        charts.append(line_chart(Axes(metric.replace("_", " "), y="share", level=level), series))
    found = "".join(charts)
    return html.heading("Online evaluation") + html.row(charts) if found else ""


def pairs_evaluated(networks: Sequence[Network], pairs: PairSet) -> str:
    """Return table, curves and paired tests of networks on a pair file, raw pixels beside them."""
    same = pairs.same
    num_same, num_different = int(np.count_nonzero(same)), int(np.count_nonzero(~same))
    heading = html.heading(f"Pairs: {len(same):,} of {pairs.uri.rpartition('/')[2]}, {num_same:,} of one identity")
    if len(same) < _FOLDS or min(num_same, num_different) < _FOLDS:
        return heading + html.paragraph("Too few pairs of both kinds for ten folds: nothing is computed.", "note")
    kinds = (RAW_PIXELS, RAW_PIXELS + _CENTERED)
    distances: dict[str, Floats] = dict(zip(kinds, raw_pixel_distances(pairs), strict=True))
    for network in networks:
        plain = network.embed_pairs(pairs)
        for is_centered in centerings(network.name):
            name = network.name + _CENTERED * is_centered
            distances[name] = pair_distances(center(plain) if is_centered else plain)
    correct = {name: kfold_correct(one, same) for name, one in distances.items()}
    rows = [_row(name, one, same, correct[name]) for name, one in distances.items()]
    fars = [far for far in PAIR_FARS if carries_far(num_different, far)]
    lost = [f"{far:g}" for far in PAIR_FARS if far not in fars]
    texts = []
    if lost:
        texts.append(f"{num_different:,} different pairs carry no TAR at FAR {', '.join(lost)}: 3 / FAR are needed.")
    error = rate_error(0.75, len(same))
    if error > 0.01:
        texts.append(f"So few pairs leave ±{1.96 * error:.3f} at an accuracy of 0.75: smaller differences say nothing.")
    heads = ["", "accuracy", "95 % interval", "AUC", *(f"TAR@{far:g}" for far in fars)]
    curves = {name: roc_curve(-one, same) for name, one in distances.items()}
    return (
        heading
        + html.table(heads, [row[: len(heads)] for row in rows])
        + html.notes(texts)
        + html.row(_curves(curves, num_different, num_same))
        + _distances(networks[-1].name, distances, same)
        + _tests(correct)
    )


def _row(name: str, distances: Floats, same: NDArray[np.bool_], correct: NDArray[np.bool_]) -> list[str | float | None]:
    accuracy = kfold_accuracy(distances, same).mean
    low, high = bootstrap_interval(correct.astype(float))
    row: list[str | float | None] = [name, accuracy, f"{low:.3f} to {high:.3f}", roc_curve(-distances, same).area]
    for far in PAIR_FARS:
        if carries_far(int(np.count_nonzero(~same)), far):
            try:
                row.append(tar_at_far(distances, same, far).tar)
            except DataError:
                # A fold lacks pairs of one kind.
                row.append(None)
    return row


def _curves(curves: dict[str, RocCurve], num_different: int, num_same: int) -> list[str]:
    """Return ROC with the chance line, and DET, as far as the counts reach."""
    lowest = 1 / num_different
    far = np.geomspace(max(lowest, 1e-7), 1, 60)
    chance = Series("chance", far.tolist(), far.tolist(), color=7, dashed=True)
    roc = [Series(name, one.fpr.tolist(), one.tpr.tolist()) for name, one in curves.items()]
    det = [Series(name, one.fpr.tolist(), (1 - one.tpr).tolist()) for name, one in curves.items()]
    reach, best = (max(lowest, 1e-7), 1.0), (1 / num_same, 1.0)
    below = Series("chance", far.tolist(), (1 - far).tolist(), color=7, dashed=True)
    label = f"FAR, from 1 of {num_different:,} pairs"
    rising = Axes("ROC", x=label, y="TAR", log_x=True, range_x=reach, range_y=(0, 1))
    falling = Axes("DET", x=label, y="1 − TAR", log_x=True, log_y=True, range_x=reach, range_y=best)
    return [line_chart(rising, [*roc, chance]), line_chart(falling, [*det, below])]


def _distances(name: str, distances: dict[str, Floats], same: NDArray[np.bool_]) -> str:
    charts = []
    for key in (name + _CENTERED * is_centered for is_centered in centerings(name)):
        groups = [("same", distances[key][same].tolist()), ("different", distances[key][~same].tolist())]
        charts.append(histogram(Axes(f"distances: {key}", x="squared distance", y="share"), groups))
    return html.row(charts)


def _tests(correct: dict[str, NDArray[np.bool_]]) -> str:
    """Return the paired differences of every two rows, plain with plain and centered with centered.

    Of many rows only those with the last network's are shown, from all others.
    """
    rows = []
    names = list(correct)
    last = names[-1].removesuffix(_CENTERED)
    for one, other in itertools.combinations(names, 2):
        is_shown = len(names) <= _MOST_TESTED or other.removesuffix(_CENTERED) == last
        if is_shown and _is_comparable(one, other):
            difference = correct[other].astype(float) - correct[one].astype(float)
            low, high = bootstrap_interval(difference)
            verdict = "significant" if low > 0 or high < 0 else "not significant"
            rows.append([f"{other} − {one}", float(difference.mean()), f"{low:.3f} to {high:.3f}", verdict])
    text = "Paired bootstrap over the pairs, 2,000 samples. One training run each: another seed may differ by more."
    heads = ["difference in accuracy", "mean", "95 % interval", "verdict"]
    return html.heading("Paired tests") + html.table(heads, rows) + html.paragraph(text, "faint") if rows else ""


def _is_comparable(one: str, other: str) -> bool:
    """Whether a test between two rows says something: whitened ones are centered, and are compared with all."""
    if WHITENED in one + other:
        return True
    return one.endswith(_CENTERED) == other.endswith(_CENTERED)


def neighbors_evaluated(networks: Sequence[Network], faces: LabeledSet) -> str:
    """Return leave-one-out 1-NN accuracy of networks on labeled faces."""
    rows, counts = [], {"num_images": 0, "num_identities": 0}
    for network in networks:
        plain = network.embed(faces.faces)
        for name, vectors in ((network.name, plain), (f"{network.name}, centered", center(plain))):
            (accuracy,), counts = neighbor_accuracies(vectors, faces.labels, [1])
            low = 1.96 * rate_error(accuracy, counts["num_images"])
            rows.append([name, accuracy, f"±{low:.3f}"])
    title = f"Nearest neighbors: {counts['num_images']:,} images of {counts['num_identities']:,} identities"
    text = "The interval takes images as independent; images of one identity are not, so it is too narrow."
    return html.heading(title) + html.table(["", "1-NN accuracy", "95 %"], rows) + html.paragraph(text, "faint")
