"""Supervised runs whose class centers are shared by gloo ranks, beside the same run on one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.methods.optim import RowAdamW
from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.checkpoint.sharded_state import gather_state, load_gathered
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import check_run, prepare_run
from lafs_ray.training.runner import run_rank
from tests.ranks import on_ranks
from tests.training.faces import run, tiny, without_times

# 12 faces a step for 1, 2 or 3 ranks; dropout, which differs from rank to rank, is off, and the grid has no landmark
# CNN with its dropout and batch statistics. Mix-up comes and goes.
SETTINGS = [
    "batch_size=12",
    "duration=6 steps",
    "checkpoints.every=2 steps",
    "landmarks.source=grid",
    "model.num_landmarks=49",
    "model.dropout=0",
    "model.drop_path=0",
    "mixup.probability=0.5",
    "optim.warmup=1 steps",
]
SAMPLED = [*SETTINGS, "margin.sample_rate=0.5"]
STOPPED_AT = 5


def config_of(folder: Path | str, data: str, settings: Sequence[str]) -> FinetuneConfig:
    return tiny(folder, data, *settings, kind=FinetuneConfig)


def train_rank(rank: int, num_ranks: int, config: FinetuneConfig, stop_at: int) -> None:
    """A run on one of several ranks, without Ray; its batches end at a step, as if killed."""
    inputs = check_run(config)
    device = torch.device("cpu")
    source = inputs.faces, inputs.sampler, inputs.preprocessor()

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return local_stream(*source, first, min(stop, stop_at), rank, num_ranks)

    run_rank(inputs, stream, device=device, rank=rank, wrap=DistributedDataParallel)


def lines(folder: Path) -> list[dict[str, Any]]:
    metrics = read_metrics(filesystem.join(str(folder), "part_fvit", "metrics.jsonl"))
    return [without_times(line) for line in metrics]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Runs of the same six steps: `one`, on one rank, and `halves`, there in two micro-batches.

    `stopped` on two ranks; `on one` and `on three` have continued such a run on as many. `sampled` on two ranks with
    half the classes a step; `sampled twice` was stopped and continued.
    """
    base = tmp_path_factory.mktemp("runs")
    run(config_of(base / "one", face_set_path, SETTINGS))
    run(config_of(base / "halves", face_set_path, [*SETTINGS, "accumulation=2"]))
    settings = {"stopped": SETTINGS, "on three": SETTINGS, "sampled": SAMPLED, "sampled twice": SAMPLED}
    configs = {name: config_of(base / name, face_set_path, each) for name, each in settings.items()}
    for config in configs.values():
        prepare_run(config)
    on_ranks(
        tmp_path_factory.mktemp("ranks"),
        (2, train_rank, (configs["stopped"], STOPPED_AT)),
        (2, train_rank, (configs["on three"], STOPPED_AT)),
        (3, train_rank, (configs["on three"], 6)),
        (2, train_rank, (configs["sampled"], 6)),
        (2, train_rank, (configs["sampled twice"], 3)),
        (2, train_rank, (configs["sampled twice"], 6)),
    )
    shutil.copytree(base / "stopped", base / "on one")
    run(config_of(base / "on one", face_set_path, SETTINGS))
    return base


def assert_same_training(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_two_ranks__train_like_one_with_twice_the_micro_batches(folders: Path) -> None:
    """Loss and accuracy of each step: two ranks' shares are one rank's micro-batches."""
    expected = lines(folders / "halves")
    assert {line["mixup_lam"] < 1 for line in expected} == {True, False}
    assert len({line["loss"] for line in expected}) == 6
    assert_same_training(lines(folders / "stopped"), expected[:STOPPED_AT])


@pytest.mark.parametrize("name", ["on one", "on three"])
def test_checkpoint_of_two_ranks__continues_on_another_number(folders: Path, name: str) -> None:
    """The run goes on from step 4 with the losses of one that was never interrupted."""
    assert_same_training(lines(folders / name), lines(folders / "one"))


def test_checkpoint__is_that_of_one_rank(folders: Path, face_set_path: str) -> None:
    """Names, shapes and, up to rounding, values in a checkpoint do not depend on who wrote it."""
    two, one = (
        load_checkpoint(str(folders / name / "part_fvit" / "checkpoints" / "step-00000004.pt"))
        for name in ("stopped", "one")
    )
    assert two["model"].keys() == one["model"].keys()
    for name, value in one["model"].items():
        assert two["model"][name].shape == value.shape
    # Adam's first steps are of the learning rate's size, whichever way a tiny gradient points.
    weight = "head.weight"
    assert (two["model"][weight] - one["model"][weight]).abs().mean() < 1e-5
    states = [each["optimizer"]["state"] for each in (two, one)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        for key, value in state.items():
            assert states[0][number][key].shape == value.shape, (number, key)


def test_sampled_run__continues_as_if_never_interrupted(folders: Path) -> None:
    """Below a rate of 1, the same number of ranks draws the same classes: equal to the last bit."""
    expected = lines(folders / "sampled")
    assert len(expected) == 6
    assert lines(folders / "sampled twice") == expected
    dense = lines(folders / "one")
    assert all(a["loss"] < b["loss"] for a, b in zip(expected, dense, strict=True)), "a softmax over half the classes"


def head_and_optimizer(rate: float, rank: int = 0, num_ranks: int = 1) -> tuple[PartialFC, RowAdamW]:
    torch.manual_seed(0)
    head = PartialFC(3, 7, sample_rate=rate, rank=rank, num_ranks=num_ranks)
    return head, RowAdamW(head.parameters(), lr=0.1)


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_load_gathered__parts_of_any_number_of_ranks(rate: float) -> None:
    """Centers, moments and step counts: the shards of 1, 2, 3 ranks join to the full state."""
    head, optimizer = head_and_optimizer(rate)
    for step in range(3):
        head.begin_step(step)
        head.loss(torch.randn(4, 3), torch.tensor([0, 3, 6, 1]))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    model, optim = gather_state(nn.Sequential(head), optimizer)
    for num_ranks in (1, 2, 3):
        weights, states = [], []
        for rank in range(num_ranks):
            part, its_optimizer = head_and_optimizer(rate, rank, num_ranks)
            load_gathered(nn.Sequential(part), its_optimizer, model, optim)
            weights.append(part.weight)
            states.append(its_optimizer.state[part.weight])
        assert torch.equal(torch.cat(weights), head.weight)
        for key, value in optimizer.state[head.weight].items():
            parts = [state[key] for state in states]
            assert torch.equal(torch.cat(parts) if value.ndim else parts[0], value), key


def test_load_gathered__of_another_number_of_classes() -> None:
    """A state of more classes is refused with both shapes, though a rank's part of it would fit."""
    head, optimizer = head_and_optimizer(1.0, rank=0, num_ranks=2)
    state = {"0.weight": torch.zeros(8, 3)}
    with pytest.raises(ValueError, match=r"0.weight: the checkpoint has \[8, 3\], .* \[7, 3\]"):
        load_gathered(nn.Sequential(head), optimizer, state, optimizer.state_dict())


def test_check_job__more_workers_than_identities(tmp_path: Path, face_set_path: str) -> None:
    """Ranks share the class centers, so each needs one; checked before a worker is started."""
    config = config_of(tmp_path, face_set_path, ["batch_size=26", "compute.workers=13"])
    with pytest.raises(ConfigError, match="13 workers for 12 identities"):
        check_run(config)
