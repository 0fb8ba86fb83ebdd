"""The metric of a checkpoint."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lafs_ray.config.train import OnlineEval
from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.engine.online_eval import check_online_eval, evaluate_sets
from lafs_ray.errors import DataError
from lafs_ray.evaluation.protocols import Device
from lafs_ray.evaluation.verification import carries_far, kfold_accuracy, tar_at_far
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.tuning.config import Objective


def objective_value(checkpoint: str, objective: Objective, device: Device) -> float:
    """Return the metric of a checkpoint.

    Args:
        checkpoint: its URI, `<run>/checkpoints/step-*.pt`.
        objective: metric and faces; loss is the mean loss of the steps logged up to the checkpoint.
        device: to compute on.

    Raises:
        UserError: the checkpoint or a file is missing or damaged, or the metric is not finite.
    """
    value: float | None
    metric = objective.metric
    if metric == "loss":
        run = filesystem.parent(filesystem.parent(checkpoint))
        step = int(filesystem.file_name(checkpoint).removeprefix("step-").removesuffix(".pt"))
        lines = read_metrics(filesystem.join(run, "metrics.jsonl"))
        value = next((line["loss"] for line in lines if line["step"] == step), None)
    else:
        # Validated with the sweep: the one set that the metric needs.
        (result,) = evaluate_sets(checkpoint, _files(objective), device)
        tar = f"TAR@{objective.far:g}"
        names = {"knn": "1-NN", "pair_accuracy": "accuracy", "tar_at_far": tar}
        value = result.rows[int(objective.centered)].metrics[names[metric]]
    if value is None or not math.isfinite(value):
        raise DataError(
            checkpoint,
            found=f"no finite {metric} of this step" if value is None else f"{metric} {value}",
            expected="a finite metric",
            fix="these settings diverge; narrow the space if many trials do",
        )
    return value


def check_eval_sets(objective: Objective) -> None:
    """Read the evaluation sets of an objective and check that the metric is defined on them.

    Raises:
        DataError: a file is missing or damaged, an image does not decode, or the metric is undefined.
    """
    check_online_eval(_files(objective))
    if objective.pairs is None:
        return
    same = open_pairs(objective.pairs, objective.color_order).same
    distances = np.linspace(0, 4, len(same))
    try:
        kfold_accuracy(distances, same)
        if objective.metric == "tar_at_far":
            tar_at_far(distances, same, objective.far)
            _require_far(same, objective.far)
    except DataError as error:
        parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
        raise DataError(f"{objective.pairs}: {error.subject}", **parts) from None


def _require_far(same: NDArray[np.bool_], far: float) -> None:
    num_different = int(np.count_nonzero(~same))
    if not carries_far(num_different, far):
        raise DataError(
            "verification pairs",
            found=f"{num_different} different pairs for far {far:g}",
            expected=f"{round(3 / far)} or more: fewer cannot tell that rate from zero",
            fix="raise objective.far, add pairs, or choose metric: pair_accuracy",
        )


def _files(objective: Objective) -> OnlineEval:
    return OnlineEval(**objective.model_dump(include={"pairs", "identities", "color_order"}))
