"""A run's figures in Ray's dashboard: gauges that Prometheus collects and Grafana draws.

`configs/grafana/lafs_ray.json` has a panel for each of them. Ray puts `ray_` before their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

PREFIX = "lafs_"

# A figure of a report to what it is; figures that a run does not report have no gauge there.
GAUGES = {
    "step": "Optimizer steps done",
    "epoch": "Epoch of the last step",
    "loss": "Training loss",
    "lr": "Learning rate",
    "images_per_s": "Faces trained on a second, all workers together",
    "wait_share": "Share of the time that training waits for its input",
    "read_ms": "Milliseconds that reading a face takes a process",
    "preprocess_ms": "Milliseconds that decoding and cutting a face takes a process",
    "gradient_norm_max": "Largest norm of a parameter's gradient, before clipping",
    "skipped_records": "Damaged records so far",
    "teacher_entropy": "Entropy of the teacher's answers, nats",
    "student_entropy": "Entropy of the student's answers, nats",
    "kl": "Nats that the student has to learn",
    "center_norm": "Norm of the center",
    "used_prototypes": "Share of the prototypes in use",
    "embedding_std": "Spread of the embeddings, 0 to 1",
    "accuracy": "Share of faces nearest to their own class",
}


class Gauges:
    """The gauges of one run, set in the process of its first rank.

    Args:
        run: name of the run, a label of each figure.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, report: Mapping[str, Any]) -> None:
        """Show the figures of a report."""
        for name in GAUGES.keys() & report.keys():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"{PREFIX}{name}", GAUGES[name], ("run",))
            self._gauges[name].set(report[name], {"run": self._run})
