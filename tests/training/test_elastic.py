"""A pretraining run started on three gloo ranks, continued on two and on four, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
from tests.training.test_neighbor_runs import write_pairs

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
PAIRED = "2, with pairs of neighbors"

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
def neighbors(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> str:
    """The setting of pairs of neighbors."""
    return f"neighbors.pairs={write_pairs(tmp_path_factory.mktemp('neighbors') / 'pairs.safetensors', face_set_path)}"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, face_set_path: str, neighbors: str) -> dict[str, Any]:
    """By name: folder and keys of a run that other ranks continued, and its keys on 3 ranks before."""
    base = tmp_path_factory.mktemp("several")

    def config(name: str, ranks: int) -> PretrainConfig:
        paired = [neighbors] if name == PAIRED else []
        return tiny(base / name, face_set_path, *SETTINGS, f"compute.workers={ranks}", *paired)

    continued = {"2": 2, "4": 4, PAIRED: 2}
    for name in continued:
        prepare_run(config(name, 3))
    # In the same processes, since starting one costs seconds.
    stages = [
        (ranks, train_rank, (config(name, ranks), stop))
        for name, then in continued.items()
        for ranks, stop in ((3, STOPPED_AT), (then, STEPS))
    ]
    keys = on_ranks(tmp_path_factory.mktemp("ranks"), *stages)
    return {name: (base / name / "debug", *keys[2 * n : 2 * n + 2]) for n, name in enumerate(continued)}


def joined(ranks: list[Keys]) -> Keys:
    """The keys of the global batch: one rank's rows after the other's."""
    return {step: [key for rank in ranks for key in rank[step]] for step in ranks[0]}


def read_by(several: dict[str, Any], name: str) -> Keys:
    """The keys of a run on three ranks up to its last checkpoint, and on others after it."""
    before, after = map(joined, several[name][1:])
    assert sorted(before) == [*range(STOPPED_AT)]
    assert sorted(after) == [*range(SAVED, STEPS)]
    return {**{step: before[step] for step in range(SAVED)}, **after}


def keys_of(inputs: Any) -> Keys:
    """The keys that one process reads: image i has key i + 1."""
    return {step: (index + 1).tolist() for step, index in rank_batches(inputs.sampler, 0, STEPS)}


def assert_losses(several: dict[str, Any], name: str, expected: list[dict[str, Any]]) -> None:
    found = read_metrics(str(several[name][0] / "metrics.jsonl"))
    assert [line["step"] for line in found] == [*range(1, STEPS + 1)]
    for ours, theirs in zip(found, expected, strict=True):
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]


@pytest.mark.parametrize("ranks", ["2", "4"])
def test_run_on_three_ranks__continued_on_others_reads_the_same_records(
    ranks: str, one: Result, several: dict[str, Any]
) -> None:
    """The record keys of the whole run come in the order of one process: none lost or repeated."""
    steps = read_by(several, ranks)
    assert steps == keys_of(one.inputs)
    first_epoch = np.concatenate([steps[step] for step in range(10)])
    assert sorted(first_epoch) == [*range(1, 121)], "each record once"


@pytest.mark.parametrize("ranks", ["2", "4"])
def test_run_on_three_ranks__continued_on_others_has_the_losses_of_one(
    ranks: str, one: Result, several: dict[str, Any]
) -> None:
    """Every step has the loss of the run that was never interrupted nor shared."""
    assert_losses(several, ranks, one.metrics)


def test_run_with_neighbors__continued_on_others_is_that_of_one(
    tmp_path: Path, face_set_path: str, one: Result, neighbors: str, several: dict[str, Any]
) -> None:
    """Pairs are the same and are on one rank, so each step has the loss of one process; not that without pairs."""
    paired = run(tiny(tmp_path, face_set_path, *SETTINGS, neighbors))
    assert read_by(several, PAIRED) == keys_of(paired.inputs) != keys_of(one.inputs)
    assert_losses(several, PAIRED, paired.metrics)
    assert paired.metrics[-1]["loss"] != pytest.approx(one.metrics[-1]["loss"], rel=1e-4)
