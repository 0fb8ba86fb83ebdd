"""Signs that self-distillation collapses: all faces get one answer, or the teacher has none.

Four figures of `ssl_diagnostics` are compared with what they were earlier in the run, since what is
normal differs from network to network: how far an untrained teacher is from the uniform answer
depends on the number of prototypes, the bottleneck and the temperature. The rules were set on
records of small networks (docs/watching.md), so they warn; whether they may also stop a run is the
user's choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import TrainingError

# Below this the teacher says nothing about a face, whatever it said before.
_SILENT_NATS = 0.02
_FEW_PROTOTYPES = 0.1
_EQUAL_EMBEDDINGS = 0.2
# A figure has fallen when it is below this share of its highest value.
_FALLEN_OPINION = 0.5
_FALLEN_SPREAD = 0.7
_RISEN_CENTER = 1.25
# The running center starts at 0; its first 20 steps say nothing.
_SETTLING_STEPS = 20
# Reports in a row with the same sign, after which a run may be stopped.
PATIENCE = 5


@dataclass(frozen=True)
class Sign:
    """A sign of collapse.

    Args:
        name: which.
        text: the figures, in words.
        reports: how many reports in a row it has stood.
    """

    name: str
    text: str
    reports: int


class CollapseMonitor:
    """Looks at the reports of one run, oldest first.

    Args:
        config: of the run.
        steps_per_epoch: of its set.
        total_steps: of the run.
    """

    def __init__(self, config: PretrainConfig, steps_per_epoch: int, total_steps: int) -> None:
        self._log_k = math.log(config.head.num_prototypes)
        warmup = config.optim.warmup.steps(steps_per_epoch, total_steps)
        self._judged_from = max(min(warmup, steps_per_epoch), _SETTLING_STEPS)
        self._highest: dict[str, float] = {}
        self._first_center: float | None = None
        self._standing: dict[str, int] = {}

    def see(self, report: Mapping[str, float]) -> list[Sign]:
        """The signs in a report, given those before it; none while the run settles.

        Args:
            report: a line of metrics.jsonl of a pretraining run.
        """
        if report["step"] < self._judged_from:
            return []
        found = self._signs(report)
        self._standing = {name: self._standing.get(name, 0) + 1 for name in found}
        return [Sign(name, text, self._standing[name]) for name, text in found.items()]

    def _signs(self, report: Mapping[str, float]) -> dict[str, str]:
        entropy, spread = report["teacher_entropy"], report["embedding_std"]
        used, center, kl = report["used_prototypes"], report["center_norm"], report["kl"]
        opinion = self._log_k - entropy
        # Of scores that a temperature divides, the opinion grows with the square of 1/temperature:
        # a schedule of the temperature must not look like a collapse.
        scaled = opinion * report["teacher_temp"] ** 2
        best = {
            name: self._at_most_so_far(name, value)
            for name, value in (
                ("opinion", opinion),
                ("scaled", scaled),
                ("std", spread),
                ("kl", kl),
            )
        }
        if self._first_center is None:
            self._first_center = center
        signs: dict[str, str] = {}
        has_fallen = scaled < _FALLEN_OPINION * best["scaled"]
        if opinion < _SILENT_NATS or (has_fallen and opinion < _FALLEN_OPINION * best["opinion"]):
            signs["uniform teacher"] = (
                f"teacher_entropy {entropy:.2f} of at most {self._log_k:.2f} (log K), "
                f"{opinion:.2f} below it, {best['opinion']:.2f} earlier: the teacher comes to give "
                "all prototypes the same"
            )
        if spread < _EQUAL_EMBEDDINGS or spread < _FALLEN_SPREAD * best["std"]:
            signs["equal embeddings"] = (
                f"embedding_std {spread:.2f}, {best['std']:.2f} earlier: faces come to have the "
                "same embedding"
            )
        if used < _FEW_PROTOTYPES:
            signs["few prototypes"] = (
                f"used_prototypes {used:.3f}: the teacher settles on a few prototypes"
            )
        if center > _RISEN_CENTER * self._first_center and kl < _FALLEN_OPINION * best["kl"]:
            signs["common scores"] = (
                f"center_norm {center:.2f}, {self._first_center:.2f} earlier, while kl fell from "
                f"{best['kl']:.2f} to {kl:.2f}: what all faces share in the scores grows, and what "
                "can be learnt shrinks"
            )
        return signs

    def _at_most_so_far(self, name: str, value: float) -> float:
        self._highest[name] = max(value, self._highest.get(name, value))
        return self._highest[name]


# What was seen to lead to collapse here; docs/method.md has the runs.
_SMALL_BATCH = 256
_WARM_TEACHER, _WARM_SINKHORN_TEACHER = 0.07, 0.05
_STRONG_JITTER, _STRONG_HUE, _WIDE_START = 0.6, 0.25, 0.5


def advice(config: PretrainConfig, teacher_temp: float) -> str:
    """What to change in a run that collapses, most likely cause first.

    Args:
        config: of the run.
        teacher_temp: at the step in question.
    """
    views, is_sinkhorn = config.views, config.dino.centering == "sinkhorn"
    hints = []
    if config.model.init_std >= _WIDE_START:
        hints.append(
            f"model.init_std={config.model.init_std:g} makes all faces alike before training "
            "begins; 0.02 does not"
        )
    if not is_sinkhorn and config.batch_size < _SMALL_BATCH:
        hints.append(
            f"a running center over {config.batch_size} faces collapses slowly; "
            "dino.centering=sinkhorn balances each batch"
        )
    if teacher_temp >= (_WARM_SINKHORN_TEACHER if is_sinkhorn else _WARM_TEACHER):
        colder = 0.02 if is_sinkhorn else 0.04
        hints.append(
            f"the teacher's temperature is {teacher_temp:g}; try {colder:g} "
            "(dino.teacher_temp.start and .end)"
        )
    if max(views.brightness, views.contrast, views.saturation) > _STRONG_JITTER or (
        views.hue > _STRONG_HUE
    ):
        hints.append(
            "strong color jitter collapsed here; views.brightness=0.4 views.contrast=0.4 "
            "views.saturation=0.2 views.hue=0.1 are the paper's"
        )
    if not hints:
        sharper = "a lower dino.teacher_temp.end, or a lower optim.lr"
        hints.append(sharper if is_sinkhorn else f"dino.centering=sinkhorn, {sharper}")
    return "; ".join(hints)


def collapsed(step: int, config: PretrainConfig, signs: Sequence[Sign], hint: str) -> TrainingError:
    """The message that ends a run with monitoring.collapse=stop."""
    return TrainingError(
        f"step {step} of run {config.run.name}: the networks collapse",
        found="\n    ".join(
            ["", *(f"{sign.text} ({sign.reports} reports in a row)" for sign in signs)]
        ),
        expected="a teacher that tells faces apart (monitoring.collapse=stop)",
        fix=f"under another run.name: {hint}; monitoring.collapse=warn goes on with this run, "
        f"which is saved at step {step}",
    )
