"""Signs of collapse in self-distillation: equal embeddings, or a teacher with a uniform output.

Metrics of `ssl_diagnostics` are compared with their earlier values in the run, since the normal range differs from
network to network: how far an untrained teacher is from the uniform distribution depends on the number of prototypes,
the bottleneck and the temperature. The thresholds were set on records of small networks (docs/watching.md), so they
warn; monitoring.collapse=stop also ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import TrainingError

# Below this KL divergence from uniform, the teacher's output carries no information.
_UNIFORM_NATS = 0.02
_FEW_PROTOTYPES = 0.1
_EQUAL_EMBEDDINGS = 0.2
# A metric has fallen when it is below this fraction of its maximum.
_FALLEN_KL = 0.5
_FALLEN_STD = 0.7
_RISEN_CENTER = 1.25
# The running center starts at 0; its norm means nothing in the first 20 steps.
_SETTLING_STEPS = 20
# Reports in a row with the same sign, after which a run may be stopped.
PATIENCE = 5


_USED = ("teacher_entropy", "embedding_std", "used_prototypes", "center_norm", "kl", "teacher_temp")


@dataclass(frozen=True)
class Sign:
    """A sign of collapse.

    Args:
        name: which.
        text: the metrics and what they mean.
        reports: consecutive reports with this sign.
    """

    name: str
    text: str
    reports: int


class CollapseMonitor:
    """Finds signs of collapse in the reports of one run, oldest first.

    Args:
        config: of the run.
        steps_per_epoch: of its set.
        total_steps: of the run.
    """

    def __init__(self, config: PretrainConfig, steps_per_epoch: int, total_steps: int) -> None:
        self.config = config
        self._log_k = math.log(config.head.num_prototypes)
        warmup = config.optim.warmup.steps(steps_per_epoch, total_steps)
        self._first_step = max(min(warmup, steps_per_epoch), _SETTLING_STEPS)
        self._maximum: dict[str, float] = {}
        self._first_center: float | None = None
        self._streaks: dict[str, int] = {}

    def update(self, report: Mapping[str, float]) -> list[Sign]:
        """Return the signs in a report, given those before it; none during the warm-up.

        Args:
            report: a line of metrics.jsonl of a pretraining run; no sign is found in one without its metrics.
        """
        if report["step"] < self._first_step or any(report.get(name) is None for name in _USED):
            return []
        found = self._signs(report)
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in found}
        return [Sign(name, text, self._streaks[name]) for name, text in found.items()]

    def _signs(self, report: Mapping[str, float]) -> dict[str, str]:
        entropy, std = report["teacher_entropy"], report["embedding_std"]
        used, center, kl = report["used_prototypes"], report["center_norm"], report["kl"]
        # KL(teacher ‖ uniform). It grows with 1/temperature²: a temperature schedule must not look like a collapse.
        kl_uniform = self._log_k - entropy
        scaled = kl_uniform * report["teacher_temp"] ** 2
        values = {"kl_uniform": kl_uniform, "scaled": scaled, "std": std, "kl": kl}
        for name, value in values.items():
            self._maximum[name] = max(value, self._maximum.get(name, value))
        best = self._maximum
        if self._first_center is None:
            self._first_center = center
        signs: dict[str, str] = {}
        has_fallen = scaled < _FALLEN_KL * best["scaled"]
        if kl_uniform < _UNIFORM_NATS or (has_fallen and kl_uniform < _FALLEN_KL * best["kl_uniform"]):
            signs["uniform teacher"] = (
                f"teacher_entropy {entropy:.2f} of at most {self._log_k:.2f} (log K), "
                f"{kl_uniform:.2f} below it, {best['kl_uniform']:.2f} earlier: the teacher's "
                "output approaches the uniform distribution"
            )
        if std < _EQUAL_EMBEDDINGS or std < _FALLEN_STD * best["std"]:
            signs["equal embeddings"] = (
                f"embedding_std {std:.2f}, {best['std']:.2f} earlier: the embeddings of different faces become equal"
            )
        if used < _FEW_PROTOTYPES:
            signs["few prototypes"] = f"used_prototypes {used:.3f}: the teacher uses only a few prototypes"
        if center > _RISEN_CENTER * self._first_center and kl < _FALLEN_KL * best["kl"]:
            signs["common scores"] = (
                f"center_norm {center:.2f}, {self._first_center:.2f} earlier, while kl fell from "
                f"{best['kl']:.2f} to {kl:.2f}: the part of the scores that all faces share grows"
            )
        return signs


# Settings that led to collapse in our runs (docs/method.md).
_SMALL_BATCH = 256
_WARM_TEACHER, _WARM_SINKHORN_TEACHER = 0.07, 0.05
_STRONG_JITTER, _STRONG_HUE, _WIDE_START = 0.6, 0.25, 0.5


def advice(config: PretrainConfig, teacher_temp: float) -> str:
    """Return which settings to change in a run that collapses, most likely cause first.

    Args:
        config: of the run.
        teacher_temp: at the step in question.
    """
    views, is_sinkhorn = config.views, config.dino.centering == "sinkhorn"
    hints = []
    if config.model.init_std >= _WIDE_START:
        hints.append(
            f"model.init_std={config.model.init_std:g} makes all embeddings nearly equal before training; 0.02 does not"
        )
    if not is_sinkhorn and config.batch_size < _SMALL_BATCH:
        hints.append(
            f"a running center over {config.batch_size} faces collapses slowly; "
            "dino.centering=sinkhorn balances each batch"
        )
    if teacher_temp >= (_WARM_SINKHORN_TEACHER if is_sinkhorn else _WARM_TEACHER):
        colder = 0.02 if is_sinkhorn else 0.04
        hints.append(
            f"the teacher's temperature is {teacher_temp:g}; try {colder:g} (dino.teacher_temp.start and .end)"
        )
    if max(views.brightness, views.contrast, views.saturation) > _STRONG_JITTER or (views.hue > _STRONG_HUE):
        hints.append(
            "strong color jitter led to collapse; views.brightness=0.4 views.contrast=0.4 "
            "views.saturation=0.2 views.hue=0.1 are the paper's"
        )
    if not hints:
        sharper = "a lower dino.teacher_temp.end, or a lower optim.lr"
        hints.append(sharper if is_sinkhorn else f"dino.centering=sinkhorn, {sharper}")
    return "; ".join(hints)


def collapsed(step: int, config: PretrainConfig, signs: Sequence[Sign], hint: str) -> TrainingError:
    """Return the error that ends a run with monitoring.collapse=stop."""
    return TrainingError(
        f"step {step} of run {config.run.name}: the networks collapse",
        found="\n    ".join(["", *(f"{sign.text} ({sign.reports} reports in a row)" for sign in signs)]),
        expected="a teacher that separates faces (monitoring.collapse=stop)",
        fix=f"under another run.name: {hint}; monitoring.collapse=warn continues this run, which "
        f"is saved at step {step}",
    )
