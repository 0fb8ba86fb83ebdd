"""Reports a non-finite step to the user and writes `<run>/not-finite-NNNNNNNN.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import TrainingError
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite, RankReport

PREFIX = "not-finite-"
_SHOWN = 5


def file_name(found: NonFinite) -> str:
    """Return the file's name in the run's folder; steps count from 1, as in metrics.jsonl."""
    return f"{PREFIX}{found.step + 1:08d}.json"


def write(uri: str, found: NonFinite, shard_uris: Sequence[str]) -> None:
    """Write loss, bad gradients and the keys of all records of the step, by rank and file.

    Args:
        uri: the file.
        found: the step.
        shard_uris: the set's files, by number.
    """

    def rank(each: RankReport) -> dict[str, Any]:
        shards = np.unique(each.shards).tolist()
        return {
            "rank": each.rank,
            # As text: JSON has no nan.
            "loss": f"{each.loss:g}",
            "gradients_not_finite": each.parameters,
            "keys": {shard_uris[s]: each.keys[each.shards == s].tolist() for s in shards},
        }

    content = {
        "step": found.step + 1,
        "steps_done": found.step,
        "learning_rate": found.learning_rate,
        "ranks": [rank(each) for each in found.ranks],
    }
    with filesystem.atomic_write(uri) as file:
        file.write(json.dumps(content, indent=2).encode())


def as_error(found: NonFinite, config: TrainConfig, uri: str, shard_uris: Sequence[str]) -> TrainingError:
    """Return the error that ends the run.

    Args:
        found: the step.
        config: of the run.
        uri: the file that `write` wrote.
        shard_uris: the set's files, by number.
    """
    bad = [each for each in found.ranks if not math.isfinite(each.loss)]
    lines = [f"a finite loss ({found.ranks[0].loss:g} on rank 0), but non-finite gradients"]
    if bad:
        losses = ", ".join(f"loss {each.loss:g} on rank {each.rank}" for each in bad[:_SHOWN])
        lines = [f"{losses} ({len(bad)} of {len(found.ranks)} ranks)"]
    names = sorted({name for each in found.ranks for name in each.parameters})
    if names:
        more = ", …" if len(names) > _SHOWN else ""
        lines.append(
            f"non-finite gradients in {len(names)} of {found.num_parameters} parameters: "
            f"{', '.join(names[:_SHOWN])}{more}"
        )
    lines.append(f"learning rate {found.learning_rate:.3g}")
    lines += [_records(each, shard_uris) for each in (bad or found.ranks)[:_SHOWN]]
    lines.append(f"all records of the step: {uri}")
    precision = ""
    if config.compute.precision != "float32":
        precision = "; a run that continues may also use compute.precision=float32"
    state = "no step was completed"
    if found.step:
        state = f"the state after step {found.step} is saved; the same command resumes from it"
    return TrainingError(
        f"step {found.step + 1} of run {config.run.name}",
        found="\n    ".join(["", *lines]),
        expected="a finite loss and finite gradients",
        fix="inspect these records; reduce optim.lr or lengthen optim.warmup under another "
        f"run.name{precision} ({state})",
    )


def _records(each: RankReport, shard_uris: Sequence[str]) -> str:
    if not len(each.keys):
        return f"records of rank {each.rank}: unknown"
    names = [
        f"{filesystem.file_name(shard_uris[shard])} {key}"
        for shard, key in zip(each.shards[:_SHOWN], each.keys[:_SHOWN], strict=True)
    ]
    more = f", … ({len(each.keys)})" if len(each.keys) > _SHOWN else ""
    return f"records of rank {each.rank}: {', '.join(names)}{more}"
