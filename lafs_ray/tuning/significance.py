"""Whether a sweep's winner stands out: against chance, and against the other trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.errors import UserError
from lafs_ray.evaluation.statistics import Z_95, rate_error
from lafs_ray.tuning.config import Objective
from lafs_ray.tuning.results import Trial


@dataclass(frozen=True)
class EvalSample:
    """Size of the set that an objective is measured on.

    Args:
        count: cases that its rate is a share of.
        what: name of the cases.
        chance: rate of guessing.
    """

    count: int
    what: str
    chance: float


def eval_sample(objective: Objective) -> EvalSample | None:
    """Return the size and chance level of an objective's set; None for the loss, or where it cannot be read."""
    try:
        if objective.pairs is not None:
            same = open_pairs(objective.pairs, objective.color_order).same
            num_same = int(np.count_nonzero(same))
            if objective.metric == "tar_at_far":
                return EvalSample(num_same, "same pairs", objective.far)
            return EvalSample(len(same), "pairs", max(num_same, len(same) - num_same) / len(same))
        if objective.identities is not None:
            labels = open_labeled(objective.identities, objective.color_order).labels
            counts = np.unique(labels, return_counts=True)[1]
            # A random neighbor shows the most frequent identity with the highest share.
            return EvalSample(len(labels), "images", float(counts.max() / len(labels)))
    except UserError:
        return None
    return None


def doubts(trials: Sequence[Trial], winner: Trial, sample: EvalSample | None) -> list[str]:
    """Return lines on why the winner may not be one; none where nothing speaks against it.

    The cases of the set are taken as independent, and trials as measured on different ones: on the same set,
    differences are known more precisely, and images of one identity are known less precisely.

    Args:
        trials: of the sweep.
        winner: the best one.
        sample: what the objective was measured on; None compares nothing.
    """
    value = winner.objective
    if sample is None or value is None:
        return []
    error, found = rate_error(value, sample.count), []
    if value - Z_95 * error <= sample.chance:
        found.append(
            f"objective {value:.4f} ± {Z_95 * error:.4f} ({sample.count} {sample.what}) is not above chance, "
            f"{sample.chance:.4f}: no trial has learned what the objective measures"
        )
    reach = Z_95 * math.sqrt(2) * error
    at = winner.reports[-1].report
    others = [one.objective_at(at) for one in trials if one.number != winner.number]
    compared = [other for other in others if other is not None]
    near = sum(abs(value - other) < reach for other in compared)
    if near:
        found.append(
            f"{near} of {len(compared)} other trial{'s' * (len(compared) != 1)} that got as far "
            f"lie{'s' * (near == 1)} within {reach:.4f}, the 95 % interval of a difference on {sample.count} "
            f"{sample.what}: the winner may be one by chance; compare it over new seeds (confirm)"
        )
    return found
