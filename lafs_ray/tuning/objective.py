"""The figure that a network is judged by."""

from __future__ import annotations

import math

import numpy as np

from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError
from lafs_ray.evaluation.embed import chunks
from lafs_ray.evaluation.neighbors import check_possible
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


def judge(
    checkpoint: str, judges: EvalSets, metric: Metric, *, far: float, centered: bool, device: Device
) -> float:
    """The figure of a checkpoint.

    Args:
        checkpoint: its URI, `<run>/checkpoints/step-*.pt`.
        judges: the faces to judge on.
        metric: which figure.
        far: of tar_at_far.
        centered: whether the mean embedding is subtracted.
        device: where to compute.

    Raises:
        UserError: the checkpoint or a file is missing or damaged, or the figure is not finite.
    """
    if metric == "loss":
        return _finite(_loss(checkpoint), checkpoint, metric)
    embeddings = {"": local_embedding(load_embedder(checkpoint), device)}
    if metric == "knn":
        assert judges.identities is not None, "checked with the sweep"
        judged = evaluate_identities(
            open_labeled(judges.identities, judges.color_order), embeddings
        )
        name = "1-NN"
    else:
        assert judges.pairs is not None, "checked with the sweep"
        judged = evaluate_pairs(open_pairs(judges.pairs, judges.color_order), embeddings)
        name = "accuracy" if metric == "pair_accuracy" else f"TAR@{far:g}"
    return _finite(judged.rows[int(centered)].metrics[name], checkpoint, metric)


def _loss(checkpoint: str) -> float | None:
    """The mean loss of the steps up to a checkpoint, as its run logged it."""
    folder = filesystem.parent(filesystem.parent(checkpoint))
    step = int(filesystem.file_name(checkpoint).removeprefix("step-").removesuffix(".pt"))
    lines = read_metrics(filesystem.join(folder, "metrics.jsonl"))
    return next((line["loss"] for line in lines if line["step"] == step), None)


def _finite(value: float | None, checkpoint: str, metric: str) -> float:
    if value is None or not math.isfinite(value):
        raise DataError(
            checkpoint,
            found=f"{metric} {value}",
            expected="a finite figure",
            fix="these settings do not train; narrow the space if many trials end so",
        )
    return value


def check_eval_sets(judges: EvalSets, metric: Metric, far: float) -> None:
    """Read what networks will be judged on, and see that the figure can be computed from it.

    Raises:
        DataError: a file is missing or damaged, a face does not decode, or the figure is undefined.
    """
    if judges.identities is not None:
        check_possible(open_labeled(judges.identities, judges.color_order).labels, [1])
    if judges.pairs is None:
        return
    pairs = open_pairs(judges.pairs, judges.color_order)
    for start, stop in chunks(pairs.faces.num_images):
        pairs.faces.read(start, stop)
    same = pairs.same
    distances = np.linspace(0, 4, len(same))
    try:
        kfold_accuracy(distances, same)
        if metric == "tar_at_far":
            tar_at_far(distances, same, far)
    except DataError as error:
        parts = {"found": error.found, "expected": error.expected, "fix": error.fix}
        raise DataError(f"{judges.pairs}: {error.subject}", **parts) from None
