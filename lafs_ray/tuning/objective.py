"""The metric of a checkpoint."""

from __future__ import annotations

import math

import numpy as np

from lafs_ray.config.train import OnlineEval
from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.engine.online_eval import check_online_eval
from lafs_ray.errors import DataError
from lafs_ray.evaluation.protocols import (
    Device,
    evaluate_identities,
    evaluate_pairs,
    local_embedding,
)
from lafs_ray.evaluation.verification import kfold_accuracy, tar_at_far
from lafs_ray.training.checkpoint.inference import load_embedder
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.tuning.config import EvalSets, Metric


def objective_value(
    checkpoint: str,
    eval_sets: EvalSets,
    metric: Metric,
    *,
    far: float,
    centered: bool,
    device: Device,
) -> float:
    """Return the metric of a checkpoint.

    Args:
        checkpoint: its URI, `<run>/checkpoints/step-*.pt`.
        eval_sets: faces to evaluate on.
        metric: to compute; loss is the mean loss of the steps logged up to the checkpoint.
        far: false accept rate of tar_at_far.
        centered: whether to subtract the mean embedding.
        device: to compute on.

    Raises:
        UserError: the checkpoint or a file is missing or damaged, or the metric is not finite.
    """
    value: float | None
    order = eval_sets.color_order
    if metric == "loss":
        run = filesystem.parent(filesystem.parent(checkpoint))
        step = int(filesystem.file_name(checkpoint).removeprefix("step-").removesuffix(".pt"))
        lines = read_metrics(filesystem.join(run, "metrics.jsonl"))
        value = next((line["loss"] for line in lines if line["step"] == step), None)
    else:
        embeddings = {"": local_embedding(load_embedder(checkpoint), device)}
        if metric == "knn":
            assert eval_sets.identities is not None, "validated with the sweep"
            result = evaluate_identities(open_labeled(eval_sets.identities, order), embeddings)
        else:
            assert eval_sets.pairs is not None, "validated with the sweep"
            result = evaluate_pairs(open_pairs(eval_sets.pairs, order), embeddings)
        names = {"knn": "1-NN", "pair_accuracy": "accuracy", "tar_at_far": f"TAR@{far:g}"}
        value = result.rows[int(centered)].metrics[names[metric]]
    if value is None or not math.isfinite(value):
        raise DataError(
            checkpoint,
            found=f"{metric} {value}",
            expected="a finite metric",
            fix="these settings diverge; narrow the space if many trials do",
        )
    return value


def check_eval_sets(eval_sets: EvalSets, metric: Metric, far: float) -> None:
    """Read the evaluation sets and check that the metric is defined on them.

    Raises:
        DataError: a file is missing or damaged, an image does not decode, or the metric is
            undefined.
    """
    files = eval_sets.model_dump(include={"pairs", "identities", "color_order"})
    check_online_eval(OnlineEval(**files))
    if eval_sets.pairs is None:
        return
    same = open_pairs(eval_sets.pairs, eval_sets.color_order).same
    distances = np.linspace(0, 4, len(same))
    try:
        kfold_accuracy(distances, same)
        if metric == "tar_at_far":
            tar_at_far(distances, same, far)
    except DataError as error:
        parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
        raise DataError(f"{eval_sets.pairs}: {error.subject}", **parts) from None
