from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lafs_ray.config.finetune import Augmentation, FinetuneConfig
from lafs_ray.config.loader import load
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.errors import ConfigError
from lafs_ray.methods.optim import layer_of, set_hyperparameters
from lafs_ray.methods.supervised import Supervised, SupervisedNetwork
from lafs_ray.models.fvit import FVIT_SIZES, FViT
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.part_fvit import PartFViT
from lafs_ray.training.input_pipeline import Columns
from lafs_ray.training.tasks.build import build_training, build_transform
from lafs_ray.training.tasks.finetune import supervised_groups, supervised_hparams
from lafs_ray.training.tasks.init_weights import InitWeights, as_arrays
from lafs_ray.training.tasks.networks import build_landmark_network
from tests.golden_cases import load_case
from tests.models.margin_softmax import MarginSoftmax
from tests.training.builds import CPU, NO_WEIGHTS, SAMPLER, built, finetune
from tests.training.faces import ROOT, face_jpegs, pixels_of

AUGMENTATIONS = {
    "flip": ["0.0"],
    "crop_area": ["[0.2, 0.3]"],
    "jitter": ["0.9"],
    "rand_augment": ["1", "9"],
    "erasing": ["0.0"],
    "erasing_area": ["[0.3, 0.4]"],
}


def labeled_faces(count: int) -> Columns:
    numbers = np.arange(count)
    return {
        "image": np.stack([pixels_of(jpeg) for jpeg in face_jpegs(count)]),
        "epoch": np.zeros(count, np.int64),
        "shard": np.zeros(count, np.int64),
        "key": numbers,
        "label": numbers * 2,
    }


def test_labeled_cut__every_key_of_augmentation_counts() -> None:
    """Changing any field of augmentation changes the view of a labeled face, labels stay."""
    assert AUGMENTATIONS.keys() == Augmentation.model_fields.keys()
    count = 6
    numbers, faces = np.arange(count), labeled_faces(count)
    seen = [build_transform(finetune("augmentation.erasing=0.9"), NO_WEIGHTS)(faces)]
    assert seen[0]["images"].shape == (count, 112, 112, 3)
    for name, values in AUGMENTATIONS.items():
        for value in values:
            overrides = ["augmentation.erasing=0.9", f"augmentation.{name}={value}"]
            other = build_transform(finetune(*overrides), NO_WEIGHTS)(faces)
            assert other["label"].tolist() == (numbers * 2).tolist()
            for before in seen:
                assert not np.array_equal(other["images"], before["images"]), name
            seen.append(other)


def test_labeled_cut__of_a_record_in_any_batch() -> None:
    """With the whole recipe a record's view is the same in any batch, bit by bit."""
    faces = labeled_faces(6)
    config = finetune("augmentation.rand_augment=2", "augmentation.erasing=0.5")
    whole = build_transform(config, NO_WEIGHTS)(faces)
    part = build_transform(config, NO_WEIGHTS)({name: column[3:5] for name, column in faces.items()})
    assert np.array_equal(part["images"], whole["images"][3:5])


@pytest.mark.parametrize("key", ["crop_area", "erasing_area"])
@pytest.mark.parametrize("area", ["[0.9, 0.2]", "[0.0, 1.0]", "[0.5, 1.5]"])
def test_augmentation__impossible_area(key: str, area: str) -> None:
    """An area that is empty, larger than the image or upside down is refused with its numbers."""
    with pytest.raises(ConfigError, match=rf"{key}: \[0\.\d, \d\.\d\]"):
        finetune(f"augmentation.{key}={area}")


def test_schedules__supervised() -> None:
    """The rate is the configured one, unscaled, one step after the warm-up; decay is constant."""
    values = built(finetune("duration=4 epochs", "optim.warmup=1 epochs", "optim.lr=2e-3"), 12).hparams
    assert [values(step)["lr"] for step in (0, 3, 15)] == pytest.approx([0, 4e-4, 2e-3])
    assert {values(step)["weight_decay"] for step in range(60)} == {0.1}


F5, F7 = load_case("f5_lr_groups"), load_case("f7_finetune_schedule")


def base_network() -> SupervisedNetwork:
    """The base model with case f5's ten classes, without memory."""
    with torch.device("meta"):
        model = PartFViT(LandmarkCNN(196), FViT(FVIT_SIZES["base"]))
        return SupervisedNetwork(model, MarginSoftmax(768, F5.meta["model"]["num_class"]))


def recorded_name(name: str) -> str:
    """A parameter's name in the reference."""
    return "loss.weight" if name == "head.weight" else name.removeprefix("model.")


@pytest.mark.parametrize("decay", [0.58, 1.0])
def test_supervised_groups__recorded(decay: float) -> None:
    """Case f5: rate, weight decay and layer of all 295 parameters; with 1.0 one rate for all."""
    table = {row[0]: row[2:] for row in F5.meta["table"]}
    config = finetune("model.size=base", f"optim.layer_decay={decay}")
    assert (F5.meta["layer_decay"], F5.meta["weight_decay"]) == (0.58, config.optim.weight_decay)
    network = base_network()
    names = {id(p): recorded_name(name) for name, p in network.named_parameters()}
    groups = supervised_groups(config, network, config.optim.weight_decay)
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert found.keys() == table.keys()
    for name, (lr_scale, weight_decay, layer) in table.items():
        expected = lr_scale if decay == 0.58 else 1.0
        assert found[name]["lr_scale"] == pytest.approx(expected, rel=1e-12), name
        assert found[name]["weight_decay"] == pytest.approx(weight_decay, rel=1e-12), name
        assert layer_of(name, F5.meta["model"]["depth"]) == layer, name


def test_layer_decay__is_applied() -> None:
    """Unlike in the released code, a step's rates differ by layer; the landmark CNN's share too."""
    training = built(finetune("optim.layer_decay=0.5", "optim.landmark_lr_scale=0.1", "optim.warmup=0 steps"), 12)
    set_hyperparameters(training.optimizer, 1.0, 0.1)
    rates = {
        name: group["lr"]
        for group in training.optimizer.param_groups
        for name, p in training.task.trainable.named_parameters()
        if any(p is one for one in group["params"])
    }
    # The tiny model has two blocks, so the input lies three layers below the head.
    assert rates["head.weight"] == rates["model.mlp_head.0.weight"] == 1.0
    assert rates["model.transformer.layers.1.0.fn.norm.weight"] == 0.5
    assert rates["model.transformer.layers.0.0.fn.norm.weight"] == 0.25
    assert rates["model.cls_token"] == rates["model.patch_to_embedding.bias"] == 0.125
    assert rates["model.output_layer.1.weight"] == pytest.approx(0.0125)


@pytest.mark.parametrize("preset", ["part_fvit", "full", "few_shot", "reference"])
def test_presets__learning_rate_is_that_of_the_recorded_rule(preset: str) -> None:
    """Case f7's rule for 200 faces on each of two GPUs and three micro-batches."""
    config = load(FinetuneConfig, str(ROOT / f"configs/finetune/{preset}.yaml"))
    row = next(r for r in F7.meta["lr_table"] if (r["world_size"], r["batch"]) == (2, 200))
    assert (config.compute.workers, config.micro_batch) == (row["world_size"], row["batch"])
    assert (config.accumulation, row["base_lr"]) == (row["acc_step"], 1e-3)
    assert config.optim.lr == "paper"
    assert config.peak_lr == pytest.approx(row["lr"], rel=1e-12)


@pytest.mark.parametrize("row", F7.meta["lr_table"])
def test_learning_rate__published_rule(row: dict[str, float]) -> None:
    """With optim.lr=paper the peak follows batch and accumulation as recorded, and is that of the schedule."""
    accumulation = int(row["acc_step"])
    batch_size = int(row["world_size"] * row["batch"] * accumulation)
    config = finetune("optim.lr=paper", f"accumulation={accumulation}", f"batch_size={batch_size}")
    assert config.peak_lr == pytest.approx(row["lr"] * 1e-3 / row["base_lr"], rel=1e-12)
    peak = built(finetune("optim.lr=paper", "optim.warmup=0 steps"), 12).hparams(0)["lr"]
    assert peak == finetune("optim.lr=paper").peak_lr


@pytest.mark.parametrize("value", ["Paper", "0", "-1e-3", "true", "nan"])
def test_learning_rate__that_is_none(value: str) -> None:
    """Other words and numbers that are no rate are refused with the two possibilities."""
    with pytest.raises(ConfigError, match="optim.lr.* number greater than 0, or paper"):
        finetune(f"optim.lr={value}")


@pytest.mark.parametrize("handover", ["exact", "released"])
def test_schedules__recorded_warm_up_and_cosine(handover: str) -> None:
    """Case f7: the learning rate of all 136 steps, equal with `released`; its rule holds at every step with `exact`."""
    case = F7.meta["warmup_cosine"]
    config = finetune(
        f"duration={case['epochs']} epochs",
        f"optim.warmup={case['warmup_epochs']} epochs",
        f"optim.lr={case['base']}",
        f"optim.min_lr={case['eta_min']}",
        f"optim.handover={handover}",
    )
    sampler = EpochSampler(8 * case["steps_per_epoch"], 8, 0, 4)
    values = build_training(config, sampler, 12, NO_WEIGHTS, CPU).hparams
    ours = [values(step)["lr"] for step in range(len(case["lr_used_at_step"]))]
    recorded, lowest = case["lr_used_at_step"], case["eta_min"]
    # float64; the recorded rates are products over up to 115 steps.
    assert ours[:21] == pytest.approx(recorded[:21], rel=1e-12)
    if handover == "released":
        assert ours == pytest.approx(recorded, rel=1e-12)
    else:
        factor = 2 / (1 + math.cos(math.pi / 116))
        expected = [lowest + factor * (rate - lowest) for rate in ours[21:]]
        assert recorded[21:] == pytest.approx(expected, rel=1e-12)
        assert ours == sorted(ours[:21]) + sorted(ours[21:], reverse=True)


@pytest.mark.parametrize("epochs", [34, 68, 3.4])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_schedules__recorded_regularizer(epochs: float, strength: float) -> None:
    """Case f7: λ of each of 34 epochs; shorter and longer runs anneal over the same shares."""
    config = finetune(f"duration={epochs} epochs", f"regularizer.strength={strength}", "start.landmarks=x")
    sampler = EpochSampler(8 * 10, 8, 0, 4)
    values = supervised_hparams(config, sampler)
    steps = round(epochs * 10)
    for epoch, weight in F7.meta["landmark_reg_weight_by_epoch"]:
        first, last = round(epoch * steps / 34), round((epoch + 1) * steps / 34) - 1
        for step in (first, last):
            assert values(step)["regularizer_weight"] == pytest.approx(strength * weight), epoch


def test_schedules__regularizer_in_epochs() -> None:
    """A table in epochs is that of the reference, whatever the length of the run."""
    table = "[[1 epochs, 7], [20 steps, 3]]"
    config = finetune("duration=30 steps", f"regularizer.table={table}", "regularizer.strength=2", "start.landmarks=x")
    values = supervised_hparams(config, EpochSampler(80, 8, 0, 4))
    weights = [values(step)["regularizer_weight"] for step in (0, 9, 10, 19, 20, 29)]
    assert weights == [14, 14, 6, 6, 0, 0]


def test_schedules__of_what_is_switched_off_are_absent() -> None:
    """The log of a plain run names no regularizer, no mix-up and no frozen part."""
    plain = supervised_hparams(finetune(), SAMPLER)(0)
    assert plain.keys() == {"lr", "weight_decay"}
    config = finetune("mixup.probability=1", "freeze.landmarks=2 steps", "freeze.transformer=1 run")
    values = supervised_hparams(config, SAMPLER)
    assert values(0)["mixup_lam"] != values(1)["mixup_lam"]
    other = supervised_hparams(finetune("mixup.probability=1", "mixup.alpha=9"), SAMPLER)
    assert other(0)["mixup_lam"] != values(0)["mixup_lam"]
    assert [values(step)["landmarks_frozen"] for step in range(4)] == [1, 1, 0, 0]
    assert [values(step)["transformer_frozen"] for step in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "scale"), [("cosface", 30.0), ("arcface", 64.0)])
def test_build_supervised__margin(kind: str, scale: float) -> None:
    """Kind, scale and margin of the loss are the configured ones."""
    overrides = [f"margin.kind={kind}", f"margin.scale={scale}", "margin.margin=0.3"]
    method = built(finetune(*overrides), 12).task
    assert isinstance(method, Supervised)
    head = method.trainable.head
    assert (head.kind, head.scale, head.margin) == (kind, scale, 0.3)


def test_presets__differ_where_the_released_code_deviates() -> None:
    """Layer decay and regularizer: in few_shot, not in reference, whose subset is the head."""
    small = ["model.size=tiny", "model.landmark_cnn_width=0.25", "duration=34 epochs"]
    found = {}
    for preset in ("few_shot", "reference"):
        overrides = [*small, "optim.warmup=5 epochs", f"run.name={preset}"]
        config = finetune(*overrides, file=f"configs/finetune/{preset}.yaml")
        start = InitWeights(landmarks=as_arrays(build_landmark_network(config)))
        training = build_training(config, SAMPLER, 12, start, CPU)
        method = training.task
        assert isinstance(method, Supervised)
        rates = {group["lr_scale"] for group in training.optimizer.param_groups}
        subset = config.data.subset
        assert subset is not None
        weight = training.hparams(0).get("regularizer_weight")
        found[preset] = (len(rates), method.anchor is not None, weight, subset.order)
    # The tiny model has four layers: input, two blocks, output.
    assert found["few_shot"] == (4, True, 1000.0, "random")
    assert found["reference"] == (1, False, None, "head")
