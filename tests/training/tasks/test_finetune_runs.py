"""Whole finetuning runs of a few steps: continued, shared by two ranks, refused, and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.methods.supervised import SupervisedNetwork
from lafs_ray.training.checkpoint.inference import load_embedder
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import check_run, prepare_run
from lafs_ray.training.runner import run_rank
from lafs_ray.training.tasks.build import build_training
from tests.ranks import on_ranks
from tests.training.builds import CPU
from tests.training.faces import ROOT, run, tiny, without_times, write_face_set

FEW_SHOT = str(ROOT / "configs/finetune/few_shot.yaml")
# Everything on that a recipe can have; 24 of 120 faces are three steps of 8 an epoch.
RECIPE = [
    "data.subset.images_per_identity=2",
    "augmentation.rand_augment=2",
    "augmentation.erasing=0.5",
    "mixup.probability=0.5",
    "optim.layer_decay=0.58",
    "regularizer.strength=1",
    "freeze.landmarks=2 steps",
    "accumulation=2",
]


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Folder of a short stage-1 run, which stands for a pretrained one."""
    folder = tmp_path_factory.mktemp("stage1")
    short = ["duration=1 steps", "optim.warmup=0 steps"]
    run(tiny(folder, face_set_path, *short, kind=FinetuneConfig))
    return folder / "part_fvit"


def few_shot(folder: Path, data: str, start: Path, *more: str) -> FinetuneConfig:
    overrides = [f"start.transformer={start}", *RECIPE, "duration=7 steps", *more]
    return tiny(folder, data, *overrides, kind=FinetuneConfig, file=FEW_SHOT)


def test_finetuning__interrupted_and_continued(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """Ended in mid-epoch and continued, a run with the whole recipe is the undisturbed one."""
    whole, broken = (few_shot(tmp_path / name, face_set_path, stage_one, "checkpoints.every=2 steps") for name in "ab")
    expected = run(whole)
    interrupted = run(broken, killed_at=5)
    assert interrupted.logged[-1] == "killed"
    again = run(broken)
    assert again.logged[0] == "continuing few_shot at step 4 of 7"
    assert again.exact == expected.exact
    last = [line.keys() for line in expected.metrics][-1]
    assert {"regularizer", "landmark_drift_px", "mixup_lam", "landmarks_frozen"} <= last
    states = [torch.load(tmp_path / name / "few_shot/checkpoints/step-00000007.pt", weights_only=True) for name in "ab"]
    assert states[0]["landmarks"] is None, "its own landmark CNN is part of the network"
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name


def test_finetuning__subset_is_recorded(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """The run's folder lists the images trained on, and no other image is ever read."""
    config = few_shot(tmp_path, face_set_path, stage_one)
    inputs = prepare_run(config)
    rows = pq.read_table(tmp_path / "few_shot" / "subset.parquet").to_pylist()
    assert [row["key"] for row in rows] == inputs.faces.keys.tolist()
    assert np.bincount([row["label"] for row in rows]).tolist() == [2] * 12
    assert {row["file"] for row in rows} == {"train.rec"}
    assert (inputs.faces.num_images, inputs.num_classes, inputs.num_identities) == (24, 12, 12)
    other = few_shot(tmp_path, face_set_path, stage_one, "data.subset.seed=1")
    with pytest.raises(ConfigError, match=r"data\.subset\.seed: 0 -> 1"):
        prepare_run(other)


def test_finetuning__classes_stay_those_of_the_whole_set(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """The head of a file holds a few identities only; the margin softmax still has all classes."""
    subset = ["data.subset={fraction: 0.2, order: head}"]
    inputs = check_run(few_shot(tmp_path, face_set_path, stage_one, *subset))
    assert (inputs.faces.num_images, inputs.num_classes, inputs.num_identities) == (24, 12, 3)
    assert inputs.faces.keys.tolist() == list(range(1, 25))
    assert list(tmp_path.iterdir()) == [], "checking a job leaves no trace"


def test_finetuning__too_few_images_of_an_identity(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """k above what the set holds is refused before anything starts, with identities and counts."""
    config = few_shot(tmp_path, face_set_path, stage_one, "data.subset.images_per_identity=11")
    with pytest.raises(DataError, match=r"identity 0 has 10, 1 has 10, .* and 7 more"):
        prepare_run(config)
    assert list(tmp_path.iterdir()) == []


def test_finetuning__batch_larger_than_the_subset(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """A batch that the chosen images cannot fill is refused with their number."""
    with pytest.raises(ConfigError, match="24 images"):
        prepare_run(few_shot(tmp_path, face_set_path, stage_one, "batch_size=32"))


def test_finetuning__checkpoint_of_another_number_of_classes(
    tmp_path: Path, face_set_path: str, stage_one: Path
) -> None:
    """A checkpoint of 12 classes does not continue a run of 13, and says so by name and shape."""
    source = stage_one / "checkpoints" / "step-00000001.pt"
    inputs = check_run(tiny(tmp_path, face_set_path, kind=FinetuneConfig))
    training = build_training(inputs.config, inputs.sampler, 13, inputs.init_weights, CPU)
    with pytest.raises(CheckpointError) as raised:
        training.load_state_dict(torch.load(source, weights_only=True), str(source))
    assert raised.value.subject == str(source)
    for words in ("head.weight", "[12, 128]", "[13, 128]"):
        assert words in raised.value.found


def test_finetuning__labels_with_gaps(tmp_path: Path) -> None:
    """Labels that do not begin at 0 are renumbered: a class for each identity, and rows with class numbers."""
    write_face_set(tmp_path / "a.rec", 4, 10, first_label=1_000_000)
    inputs = check_run(tiny(tmp_path, tmp_path / "a.rec", kind=FinetuneConfig))
    assert inputs.num_classes == 4
    assert inputs.faces.read(np.arange(0, 40, 10)).label.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("source", ["cnn", "grid"])
def test_load_embedder__of_a_finetuned_run(tmp_path: Path, face_set_path: str, stage_one: Path, source: str) -> None:
    """The embedder of a finetuned run gives what its network gives in eval mode, bit by bit."""
    overrides = [f"start.transformer={stage_one}", f"landmarks.source={source}"]
    short = ["duration=1 steps", "optim.warmup=0 steps"]
    result = run(tiny(tmp_path, face_set_path, *overrides, *short, kind=FinetuneConfig))
    inputs = result.inputs
    training = build_training(inputs.config, inputs.sampler, 12, inputs.init_weights, CPU)
    state = inputs.folder().latest()
    assert state is not None
    training.load_state_dict(state, "")
    network = training.task.trainable.eval()
    assert isinstance(network, SupervisedNetwork)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        embedder = load_embedder(str(tmp_path / "part_fvit"))
        assert torch.equal(embedder(images), network.model(images))
    assert (embedder.landmark_cnn is None) == (source == "grid")


def without_landmark_dropout(network: nn.Module) -> nn.Module:
    """Dropout before the landmarks' head has no key; its draws differ from rank to rank."""
    assert isinstance(network, SupervisedNetwork)
    network.model.output_layer[0].p = 0.0
    return network


def rank_main(rank: int, world: int, config: FinetuneConfig) -> None:
    inputs = check_run(config)
    source = inputs.faces, inputs.sampler, inputs.preprocessor()
    run_rank(
        inputs,
        lambda first, stop: local_stream(*source, first, stop, rank, world),
        device=CPU,
        rank=rank,
        wrap=lambda network: DistributedDataParallel(without_landmark_dropout(network)),
    )


def test_two_ranks__train_like_two_micro_batches(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """With mix-up, regularizer and layer decay: 2 workers equal 1 worker with 2 micro-batches."""
    plain = ["model.dropout=0", "model.drop_path=0", "mixup.probability=1", "duration=3 steps"]
    plain += ["optim.warmup=1 steps", "freeze.landmarks=0 steps"]
    two = few_shot(tmp_path / "2", face_set_path, stage_one, *plain, "accumulation=1", "compute.workers=2")
    (tmp_path / "ranks").mkdir()
    on_ranks(tmp_path / "ranks", (2, rank_main, (two,)))
    one = few_shot(tmp_path / "1", face_set_path, stage_one, *plain)
    inputs = prepare_run(one)
    source = inputs.faces, inputs.sampler, inputs.preprocessor()

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        return local_stream(*source, first, stop)

    run_rank(inputs, stream, device=CPU, wrap=without_landmark_dropout)
    found = [read_metrics(str(tmp_path / name / "few_shot/metrics.jsonl")) for name in "12"]
    assert len(found[0]) == len(found[1]) == 3
    for ours, theirs in zip(*found, strict=True):
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        for name in ("loss", "regularizer", "mixup_lam", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
        assert without_times(ours).keys() == without_times(theirs).keys()
    assert found[0][1]["regularizer"] > 0
