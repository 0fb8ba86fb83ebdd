"""A run's metrics in Ray's dashboard: gauges that Prometheus collects and Grafana plots.

`configs/grafana/lafs_ray.json` has a panel for each of them. Ray puts `ray_` before their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

PREFIX = "lafs_"

# Description of each metric; those that a run does not report have no gauge.
GAUGES = {
    "step": "Optimizer steps done",
    "epoch": "Epoch of the last step",
    "loss": "Training loss",
    "lr": "Learning rate",
    "images_per_s": "Training images per second, all workers",
    "wait_share": "Fraction of the time that training waits for data",
    "read_ms": "Milliseconds per image of a reading process",
    "preprocess_ms": "Milliseconds that decoding and cutting a face takes a process",
    "gradient_norm_max": "Largest norm of a parameter's gradient, before clipping",
    "skipped_records": "Damaged records so far",
    "teacher_entropy": "Entropy of the teacher's output, nats",
    "student_entropy": "Entropy of the student's output, nats",
    "kl": "KL divergence from teacher to student, nats",
    "center_norm": "Center norm",
    "used_prototypes": "Fraction of the prototypes in use",
    "embedding_std": "Embedding std, 0 to 1",
    "koleo": "KoLeo of the student's embeddings, less where they lie further apart",
    "similarity": "Mean cosine of a view and its face in distillation",
    "found": "Fraction of views nearest to their own face in distillation",
    "accuracy": "Fraction of faces nearest to their own class center",
}


class Gauges:
    """The gauges of one run, set in the process of its first rank.

    Args:
        run: name of the run, the label of each gauge.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, report: Mapping[str, Any]) -> None:
        """Set the gauges to the metrics of a report."""
        for name in GAUGES.keys() & report.keys():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"{PREFIX}{name}", GAUGES[name], ("run",))
            self._gauges[name].set(report[name], {"run": self._run})
