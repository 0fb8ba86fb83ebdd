"""A step that was not finite: for the user, and as `<run>/not-finite-NNNNNNNN.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import TrainingError
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite, RankEvidence

PREFIX = "not-finite-"
_SHOWN = 5


def file_name(found: NonFinite) -> str:
    """The file's name in the run's folder; steps are counted from 1, as in metrics.jsonl."""
    return f"{PREFIX}{found.step + 1:08d}.json"


def write(uri: str, found: NonFinite, shard_uris: Sequence[str]) -> None:
    """Write what is known of the step, with every record of its batch.

    Args:
        uri: the file.
        found: the step.
        shard_uris: the set's files, by number.
    """
    content = {
        "step": found.step + 1,
        "steps_done": found.step,
        "learning_rate": found.learning_rate,
        "ranks": [_of_rank(each, shard_uris) for each in found.ranks],
    }
    with filesystem.atomic_write(uri) as file:
        file.write(json.dumps(content, indent=2).encode())


def _of_rank(each: RankEvidence, shard_uris: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": each.rank,
        # As text: JSON has no nan.
        "loss": f"{each.loss:g}",
        "gradients_not_finite": each.parameters,
        "keys": {
            shard_uris[shard]: each.keys[each.shards == shard].tolist()
            for shard in np.unique(each.shards).tolist()
        },
    }


def as_error(
    found: NonFinite, config: TrainConfig, uri: str, shard_uris: Sequence[str]
) -> TrainingError:
    """The message that ends the run.

    Args:
        found: the step.
        config: of the run.
        uri: the file that `write` wrote.
        shard_uris: the set's files, by number.
    """
    guilty = [each for each in found.ranks if not math.isfinite(each.loss)]
    if guilty:
        losses = [f"loss {each.loss:g} on rank {each.rank}" for each in guilty[:_SHOWN]]
        lines = [f"{', '.join(losses)} ({len(guilty)} of {len(found.ranks)} ranks)"]
    else:
        lines = [f"a finite loss ({found.ranks[0].loss:g} on rank 0), but gradients that are not"]
    names = sorted({name for each in found.ranks for name in each.parameters})
    if names:
        more = ", …" if len(names) > _SHOWN else ""
        lines.append(
            f"gradients not finite in {len(names)} of {found.num_parameters} parameters: "
            f"{', '.join(names[:_SHOWN])}{more}"
        )
    lines.append(f"learning rate {found.learning_rate:.3g}")
    lines += [_records(each, shard_uris) for each in (guilty or found.ranks)[:_SHOWN]]
    lines.append(f"all records of the step: {uri}")
    return TrainingError(
        f"step {found.step + 1} of run {config.run.name}",
        found="\n    ".join(["", *lines]),
        expected="a finite loss and finite gradients",
        fix=_fix(found, config),
    )


def _records(each: RankEvidence, shard_uris: Sequence[str]) -> str:
    if not len(each.keys):
        return f"records of rank {each.rank}: unknown"
    names = [
        f"{filesystem.file_name(shard_uris[shard])} {key}"
        for shard, key in zip(each.shards[:_SHOWN], each.keys[:_SHOWN], strict=True)
    ]
    more = f", … ({len(each.keys)})" if len(each.keys) > _SHOWN else ""
    return f"records of rank {each.rank}: {', '.join(names)}{more}"


def _fix(found: NonFinite, config: TrainConfig) -> str:
    state = (
        f"the state after step {found.step} is saved, and the same command begins there"
        if found.step
        else "nothing was trained yet"
    )
    precision = (
        ""
        if config.compute.precision == "float32"
        else "; compute.precision=float32 may be set for a run that continues"
    )
    return (
        f"look at the faces named; lower optim.lr or lengthen optim.warmup under another run.name"
        f"{precision} ({state})"
    )
