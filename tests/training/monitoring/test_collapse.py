from __future__ import annotations

import math

import pytest

from lafs_ray.training.monitoring.collapse import PATIENCE, CollapseMonitor, advice, collapsed
from tests.training.builds import pretrain

METRICS = ("teacher_entropy", "kl", "center_norm", "used_prototypes", "embedding_std")
NAMES = ("step", *METRICS)
Rows = list[tuple[float, ...]]

# Means over up to 100 steps, on generated faces or AT&T: batch 64, K = 1024 (docs/method.md).
HEALTHY: dict[str, Rows] = {
    "sinkhorn 0.02": [
        (100, 5.184, 1.766, 1.828, 0.912, 0.720),
        (200, 5.143, 1.626, 1.944, 0.894, 0.745),
        (300, 5.045, 1.530, 1.779, 0.916, 0.728),
        (500, 4.842, 1.570, 1.840, 0.940, 0.725),
        (700, 4.750, 1.590, 1.850, 0.944, 0.735),
    ],
    "sinkhorn 0.05, learns little": [
        (100, 6.212, 0.906, 1.736, 0.773, 0.715),
        (200, 6.238, 0.761, 1.653, 0.663, 0.751),
        (300, 6.316, 0.493, 1.312, 0.633, 0.746),
        (500, 6.469, 0.319, 0.874, 0.607, 0.706),
        (600, 6.480, 0.302, 0.811, 0.610, 0.705),
    ],
    "make demo": [
        (20, 5.095, 1.902, 1.74, 0.969, 0.711),
        (45, 5.365, 1.380, 1.94, 0.931, 0.733),
        (105, 5.421, 1.297, 2.00, 0.944, 0.696),
        (200, 5.503, 1.165, 1.99, 0.923, 0.652),
    ],
}
COLLAPSED: dict[str, tuple[Rows, set[str]]] = {
    "strong color jitter": (
        [
            (100, 5.886, 1.271, 2.278, 0.723, 0.639),
            (200, 6.448, 0.602, 3.051, 0.454, 0.466),
            (300, 6.591, 0.293, 2.515, 0.354, 0.389),
        ],
        {"uniform teacher", "common scores", "equal embeddings"},
    ),
    "AT&T": (
        [
            (50, 5.935, 1.008, 1.99, 0.734, 0.540),
            (100, 6.640, 0.221, 2.56, 0.483, 0.344),
            (120, 6.665, 0.211, 2.48, 0.461, 0.330),
        ],
        {"uniform teacher", "common scores", "equal embeddings"},
    ),
    "running center": (
        [
            (100, 4.386, 1.249, 2.674, 0.062, 0.620),
            (200, 4.966, 0.916, 3.247, 0.022, 0.580),
            (300, 5.572, 0.458, 2.513, 0.027, 0.569),
            (400, 6.255, 0.287, 1.447, 0.025, 0.548),
        ],
        {"few prototypes", "uniform teacher"},
    ),
}


def monitor(*overrides: str) -> CollapseMonitor:
    length = ["optim.warmup=50 steps", "duration=700 steps"]
    config = pretrain("head.num_prototypes=1024", *length, *overrides)
    return CollapseMonitor(config, steps_per_epoch=187, total_steps=700)


def found(rows: Rows, *overrides: str, temperatures: tuple[float, ...] = (0.04,)) -> list[set[str]]:
    collapse = monitor(*overrides)
    last = temperatures[-1]
    padded = [*temperatures, *[last] * len(rows)]
    return [
        {sign.name for sign in collapse.update({**dict(zip(NAMES, row, strict=True)), "teacher_temp": temp})}
        for row, temp in zip(rows, padded, strict=False)
    ]


@pytest.mark.parametrize("name", HEALTHY)
def test_update__healthy_runs(name: str) -> None:
    """Recorded runs whose accuracy rose to the end show no sign, not even on the way."""
    assert found(HEALTHY[name]) == [set()] * len(HEALTHY[name])


@pytest.mark.parametrize("name", COLLAPSED)
def test_update__collapsed_runs(name: str) -> None:
    """Recorded runs that collapsed show their signs, the first by the second report."""
    rows, expected = COLLAPSED[name]
    signs = found(rows)
    assert signs[0] or signs[1]
    assert set().union(*signs) == expected


def test_update__a_temperature_that_warms_up_is_no_collapse() -> None:
    """With equal scores, entropy rises with the temperature; the scores have to get closer."""
    log_k, spread = math.log(1024), 0.05
    temperatures = (0.04, 0.05, 0.06, 0.07)
    entropies = [log_k - (spread / temp) ** 2 / 2 for temp in temperatures]
    rows: Rows = [(100 * n, e, 1.0, 2.0, 0.9, 0.7) for n, e in enumerate(entropies, start=1)]
    assert log_k - entropies[-1] < 0.5 * (log_k - entropies[0])
    assert found(rows, temperatures=temperatures) == [set()] * 4
    # The same entropies at one temperature are a collapse.
    assert found(rows)[-1] == {"uniform teacher"}


def test_update__uniform_from_the_start_and_only_after_settling() -> None:
    """A teacher that was always uniform is found at once, but not before the center settles."""
    uniform: Rows = [(step, math.log(1024) - 0.001, 0.0, 0.1, 0.9, 0.04) for step in (10, 49, 50)]
    assert found(uniform) == [set(), set(), {"uniform teacher", "equal embeddings"}]


def test_update__counts_reports_in_a_row() -> None:
    """The count of a sign restarts after a report without it."""
    collapse, counts = monitor(), []
    for number, used in enumerate((0.05, 0.05, 0.5, 0.05), start=1):
        row = (100 * number, 4.0, 1.0, 2.0, used, 0.7)
        report = {**dict(zip(NAMES, row, strict=True)), "teacher_temp": 0.04}
        counts.append([sign.reports for sign in collapse.update(report)])
    assert counts == [[1], [2], [], [1]]


@pytest.mark.parametrize(
    ("settings", "temperature", "words"),
    [
        (["batch_size=64"], 0.04, "dino.centering=sinkhorn"),
        (["batch_size=512"], 0.07, "teacher's temperature is 0.07; try 0.04"),
        (["dino.centering=sinkhorn"], 0.05, "temperature is 0.05; try 0.02"),
        (["views.hue=0.5", "batch_size=512"], 0.04, "strong color jitter"),
        (["model.init_std=1.0"], 0.04, "model.init_std=1"),
        (["batch_size=512"], 0.04, "a lower optim.lr"),
    ],
)
def test_advice__names_the_setting(settings: list[str], temperature: float, words: str) -> None:
    """Each known cause is named by its key where the configuration has it, and only there."""
    assert words in advice(pretrain(*settings), temperature)
    if words != "dino.centering=sinkhorn":
        plain = advice(pretrain("batch_size=512", "dino.centering=sinkhorn"), 0.02)
        assert words not in plain or words == "a lower optim.lr"


def test_collapsed__message() -> None:
    """The error names the metrics, for how many reports, and how to continue all the same."""
    collapse = monitor()
    report = dict(zip(NAMES, (100, 4.0, 1.0, 2.0, 0.05, 0.7), strict=True)) | {"teacher_temp": 0.04}
    for _ in range(PATIENCE):
        signs = collapse.update(report)
    message = str(collapsed(100, pretrain(), signs, "lower it"))
    for word in ("step 100", "used_prototypes 0.050", "5 reports in a row", "lower it"):
        assert word in message
    assert "monitoring.collapse=warn continues this run, which is saved at step 100" in message
