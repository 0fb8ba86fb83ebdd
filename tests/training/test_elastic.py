"""A pretraining run started on three gloo ranks, continued on two and on four, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.sampler import rank_batches
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import check_run, prepare_run
from lafs_ray.training.runner import run_rank
from tests.ranks import on_ranks
from tests.training.faces import Result, run, tiny

# Twelve faces a step for 1 to 4 ranks, ten steps an epoch. Dropout, which differs from rank to rank, is off.
SETTINGS = [
    "batch_size=12",
    "duration=12 steps",
    "checkpoints.every=3 steps",
    "model.dropout=0",
    "model.drop_path=0",
    "landmarks.source=grid",
]
STEPS, STOPPED_AT, SAVED = 12, 7, 6

pytestmark = pytest.mark.xdist_group("elastic")  # one process, hence one run of the fixtures

Keys = dict[int, list[int]]
"""Record keys of each step, in the order of the batch."""


def train_rank(rank: int, num_ranks: int, config: PretrainConfig, stop_at: int) -> Keys:
    """A run on one of several ranks, whose batches end at a step, as if killed."""
    inputs = check_run(config)
    source, keys = (inputs.faces, inputs.sampler, inputs.preprocessor()), {}

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        for batch in local_stream(*source, first, min(stop, stop_at), rank, num_ranks):
            keys[batch.step] = batch.columns["key"].tolist()
            yield batch

    device = torch.device("cpu")
    wrap = DistributedDataParallel
    run_rank(inputs, stream, device=device, rank=rank, wrap=wrap)
    return keys


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Result:
    """The same run in one process, uninterrupted."""
    return run(tiny(tmp_path_factory.mktemp("one"), face_set_path, *SETTINGS))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> dict[int, Any]:
    """By the ranks that continued it: folder and keys of a run, and its keys on 3 ranks before."""
    base = tmp_path_factory.mktemp("several")
    settings = {ranks: [*SETTINGS, f"compute.workers={ranks}"] for ranks in (3, 2, 4)}

    def config(then: int, ranks: int) -> PretrainConfig:
        return tiny(base / f"then {then}", face_set_path, *settings[ranks])

    for then in (2, 4):
        prepare_run(config(then, 3))
    # In the same processes, since starting one costs seconds.
    stages = [
        (ranks, train_rank, (config(then, ranks), stop))
        for then in (2, 4)
        for ranks, stop in ((3, STOPPED_AT), (then, STEPS))
    ]
    on_three, on_two, on_three_too, on_four = on_ranks(tmp_path_factory.mktemp("ranks"), *stages)
    parts = {2: (on_three, on_two), 4: (on_three_too, on_four)}
    return {then: (base / f"then {then}" / "debug", *keys) for then, keys in parts.items()}


def joined(ranks: list[Keys]) -> Keys:
    """The keys of the global batch: one rank's rows after the other's."""
    return {step: [key for rank in ranks for key in rank[step]] for step in ranks[0]}


@pytest.mark.parametrize("ranks", [2, 4])
def test_run_on_three_ranks__continued_on_others_reads_the_same_records(
    ranks: int, one: Result, several: dict[int, Any]
) -> None:
    """The record keys of the whole run come in the order of one process: none lost or repeated."""
    before, after = map(joined, several[ranks][1:])
    assert sorted(before) == [*range(STOPPED_AT)]
    assert sorted(after) == [*range(SAVED, STEPS)]
    steps = {**{step: before[step] for step in range(SAVED)}, **after}
    # Image i has key i + 1.
    expected = {n: (index + 1).tolist() for n, index in rank_batches(one.inputs.sampler, 0, STEPS)}
    assert steps == expected
    first_epoch = np.concatenate([steps[step] for step in range(10)])
    assert sorted(first_epoch) == [*range(1, 121)], "each record once"


@pytest.mark.parametrize("ranks", [2, 4])
def test_run_on_three_ranks__continued_on_others_has_the_losses_of_one(
    ranks: int, one: Result, several: dict[int, Any]
) -> None:
    """Every step has the loss of the run that was never interrupted nor shared."""
    found = read_metrics(str(several[ranks][0] / "metrics.jsonl"))
    assert [line["step"] for line in found] == [*range(1, STEPS + 1)]
    for ours, theirs in zip(found, one.metrics, strict=True):
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]
