from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.config.finetune import Augmentation, FinetuneConfig
from lafs_ray.config.pretrain import Landmarks, PretrainConfig, Views
from lafs_ray.data import storage
from lafs_ray.data.faces import open_faces
from lafs_ray.data.plan import OrderPlan
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.method.lafs import Lafs
from lafs_ray.training.build import (
    build_cut,
    build_landmark_network,
    build_plan,
    build_training,
    landmark_state,
    load_landmark_weights,
    run_length,
    view_settings,
)
from lafs_ray.training.loop import Training
from lafs_ray.training.session import open_job
from tests.training.faces import face_jpegs, pixels_of, run, tiny

PLAN = OrderPlan(120, 8, 0, 4)
CPU = torch.device("cpu")


def pretrain(*overrides: str, file: str | None = None) -> PretrainConfig:
    return tiny("nowhere", "nowhere.rec", *overrides, file=file)


def finetune(*overrides: str) -> FinetuneConfig:
    return tiny("nowhere", "nowhere.rec", *overrides, kind=FinetuneConfig)


def built(config: Any, num_classes: int | None = None) -> Training:
    network = None if num_classes else build_landmark_network(config)
    return build_training(config, PLAN, num_classes, network, CPU)


VIEWS = {
    "num_local": "3",
    "crop_area": "[0.5, 1.0]",
    "crop_aspect": "[0.9, 1.1]",
    "local_crop_area": "[0.1, 0.5]",
    "flip": "0.4",
    "jitter": "0.1",
    "brightness": "0.3",
    "contrast": "0.3",
    "saturation": "0.3",
    "hue": "0.2",
    "grey": "0.3",
    "blur": "[0.5, 0.5, 0.1]",
    "blur_sigma_px": "[0.2, 1.0]",
    "solarise": "0.3",
}
LANDMARKS = {
    "source": "per_image",
    "noise_px": "1.0",
    "local_tokens": "10",
    "shuffle": "false",
    "replacement": "true",
}


def test_view_settings__every_key_of_views_and_landmarks_counts() -> None:
    """Changing any field of views or landmarks changes the ViewSettings: none is unused."""
    assert VIEWS.keys() == Views.model_fields.keys()
    assert LANDMARKS.keys() == Landmarks.model_fields.keys() - {"weights"}
    base = view_settings(pretrain("views.num_local=2"))
    changed = [f"views.{name}={value}" for name, value in VIEWS.items()]
    changed += [f"landmarks.{name}={value}" for name, value in LANDMARKS.items()]
    seen = {override: view_settings(pretrain(override)) for override in changed}
    for override, settings in seen.items():
        assert settings != base, override
    assert len(set(map(repr, seen.values()))) == len(seen), "two keys do the same"


def test_view_settings__default_recipe() -> None:
    """Without overrides the views are METHOD.md's: 2 + 8, areas 0.4-1, noise 5 px, 36 of 196."""
    config = tiny("x", "x.rec", "landmarks.weights=x.pt", file="configs/pretrain/lafs.yaml")
    settings = view_settings(config)
    assert (settings.num_global, settings.crop_area) == (2, (0.4, 1.0))
    assert settings.local_crop_area == (0.4, 1.0)
    assert (settings.blur, settings.solarise, settings.landmark_noise_px) == ((1, 0.1, 0.5), 0.2, 5)
    assert (settings.jitter, settings.grey, settings.flip) == (0.8, 0.2, 0.5)
    jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    assert jitter == (0.4, 0.4, 0.2, 0.1)


AUGMENTATIONS = {"flip": "0.0", "crop_area": "[0.2, 0.3]", "jitter": "0.9"}


def test_labelled_cut__every_key_of_augmentation_counts() -> None:
    """Changing any field of augmentation changes the view of a labelled face, labels stay."""
    assert AUGMENTATIONS.keys() == Augmentation.model_fields.keys()
    count = 6
    numbers = np.arange(count)
    faces = {
        "image": np.stack([pixels_of(jpeg) for jpeg in face_jpegs(count)]),
        "epoch": np.zeros(count, np.int64),
        "shard": np.zeros(count, np.int64),
        "key": numbers,
        "label": numbers * 2,
    }
    base = build_cut(finetune(), None)(faces)
    assert base["images"].shape == (count, 112, 112, 3)
    assert base["label"].tolist() == (numbers * 2).tolist()
    for name, value in AUGMENTATIONS.items():
        other = build_cut(finetune(f"augmentation.{name}={value}"), None)(faces)
        assert not np.array_equal(other["images"], base["images"]), name


@pytest.mark.parametrize("area", ["[0.9, 0.2]", "[0.0, 1.0]", "[0.5, 1.5]"])
def test_augmentation__impossible_area(area: str) -> None:
    """A crop that is empty, larger than the image or upside down is refused with its numbers."""
    with pytest.raises(ConfigError, match=r"crop_area: \[0\.\d, \d\.\d\]"):
        finetune(f"augmentation.crop_area={area}")


def test_seed__too_large_for_torch() -> None:
    """A seed beyond 63 bits is refused at start, not by torch in the middle."""
    with pytest.raises(ConfigError, match="run.seed: 9223372036854775808"):
        pretrain(f"run.seed={1 << 63}")
    built(pretrain(f"run.seed={(1 << 63) - 1}"))


OTHER_KEYS = [
    "optim.lr=1e-3",
    "optim.min_lr=1e-5",
    "optim.warmup=1 steps",
    "optim.weight_decay=0.05",
    "optim.weight_decay_end=0.5",
    "optim.clip_grad=1.0",
    "dino.student_temp=0.2",
    "dino.teacher_temp.start=0.05",
    "dino.teacher_temp.end=0.08",
    "dino.teacher_temp.warmup_epochs=1",
    "dino.centre_momentum=0.5",
    "dino.teacher_momentum=0.9",
    "dino.teacher_dropout=true",
    "dino.freeze_last_layer_epochs=2",
    "head.num_prototypes=65",
    "head.hidden_dim=33",
    "head.bottleneck_dim=17",
    "model.size=small",
    "model.num_landmarks=50",
    "model.patch_size=14",
    "model.dropout=0.2",
    "model.drop_path=0.2",
    "model.init_std=0.5",
    "accumulation=2",
    "compute.precision=bfloat16",
    "run.seed=1",
]
# A warm-up over all three epochs, so that each key of the temperature shows.
WARM = ["duration=3 epochs", "dino.teacher_temp.start=0.04", "dino.teacher_temp.warmup_epochs=3"]


def signature(training: Training) -> str:
    """Everything about a pretraining run that its configuration decides."""
    method = training.method
    assert isinstance(method, Lafs)
    weights = [(name, tuple(p.shape)) for name, p in method.trainable.named_parameters()]
    first = next(method.trainable.parameters()).flatten()[:3].tolist()
    values = [training.values(step) for step in range(45)]
    plain = (training.accumulation, training.clip_grad, training.precision, training.seed)
    temps = (method.student_temp, method.centre.momentum, method.freeze_last_layer_epochs)
    modules = list(method.trainable.modules())
    rates = [m.drop_path_rate for m in modules if hasattr(m, "drop_path_rate")]
    assert rates, "stochastic depth has another name now"
    return repr((weights, first, values, plain, temps, rates, method.teacher.training, modules))


def test_build_training__every_other_key_counts() -> None:
    """Changing any key of optim, dino, head or model changes the networks or the schedules."""
    base = signature(built(pretrain(*WARM)))
    for override in OTHER_KEYS:
        assert signature(built(pretrain(*WARM, override))) != base, override


def test_build_training__same_seed_same_weights() -> None:
    """Initial weights depend on the seed alone; student and teacher begin equal."""
    first, second = built(pretrain()), built(pretrain())
    torch.rand(7)
    states = [one.method.trainable.state_dict() for one in (first, second)]
    assert isinstance(first.method, Lafs)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, first.method.teacher.state_dict()[name]), name


def preset(name: str) -> tuple[PretrainConfig, Training]:
    small = ["model.size=tiny", "model.landmark_cnn_width=0.25", "accumulation=1"]
    where = ["compute.workers=0", "compute.device=cpu", "compute.precision=float32"]
    weights = ["landmarks.weights=untrained", "optim.warmup=10 epochs", "duration=41 epochs"]
    config = pretrain(*small, *where, *weights, file=f"configs/pretrain/{name}.yaml")
    return config, built(config)


def test_presets__differ_as_the_method_says() -> None:
    """`reference`: teacher in train mode, 0.07 to 0.04, with replacement; `lafs`: the reverse."""
    (lafs, ours), (reference, theirs) = preset("lafs"), preset("reference")
    assert isinstance(ours.method, Lafs)
    assert isinstance(theirs.method, Lafs)
    assert (ours.method.teacher.training, theirs.method.teacher.training) == (False, True)
    settings = view_settings(lafs), view_settings(reference)
    assert tuple(one.replacement for one in settings) == (False, True)
    # Temperatures of epochs 0, 29 (end of the warm-up) and 40, at 15 steps an epoch.
    temps = [
        [t.values(15 * epoch)["teacher_temp"] for epoch in (0, 29, 40)] for t in (ours, theirs)
    ]
    assert temps[0] == pytest.approx([0.04, 0.07, 0.07])
    assert temps[1] == pytest.approx([0.07, 0.04, 0.04])
    for training in (ours, theirs):
        assert isinstance(training.method, Lafs)
        assert training.clip_grad == 3.0
        assert (training.method.student_temp, training.method.centre.momentum) == (0.1, 0.9)
        assert training.method.freeze_last_layer_epochs == 1


def test_schedules__hand_computed_values() -> None:
    """At 15 steps an epoch, 4 epochs and a batch of 8: rates, decay, momentum, temperature."""
    config = pretrain(
        "duration=4 epochs",
        "optim.warmup=1 epochs",
        "dino.teacher_temp.warmup_epochs=3",
        "dino.teacher_temp.start=0.04",
        "dino.teacher_temp.end=0.07",
    )
    values = built(config).values
    peak = 5e-4 * 8 / 256
    assert peak == 1.5625e-5
    expected_lr = {
        0: 0.0,
        7: peak / 2,
        14: peak,
        15: peak,
        59: 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * 44 / 45)),
    }
    # The schedules work in double precision; the sums here are written in another order.
    for step, lr in expected_lr.items():
        assert values(step)["lr"] == pytest.approx(lr, rel=1e-12), step
    middle = values(30)
    assert middle["weight_decay"] == pytest.approx((0.04 + 0.4) / 2, rel=1e-12)
    assert middle["ema_momentum"] == pytest.approx((0.996 + 1) / 2, rel=1e-12)
    assert values(0)["weight_decay"] == pytest.approx(0.04, rel=1e-12)
    temps = [values(step)["teacher_temp"] for step in (0, 14, 15, 29, 30, 45, 59)]
    assert temps == pytest.approx([0.04, 0.04, 0.055, 0.055, 0.07, 0.07, 0.07], rel=1e-12)


def test_schedules__supervised() -> None:
    """Stage 1: the rate is that of the configuration, unscaled; the weight decay is constant."""
    values = built(
        finetune("duration=4 epochs", "optim.warmup=1 epochs", "optim.lr=2e-3"), 12
    ).values
    assert [values(step)["lr"] for step in (0, 7, 14, 15)] == pytest.approx([0, 1e-3, 2e-3, 2e-3])
    assert {values(step)["weight_decay"] for step in range(60)} == {0.1}


def test_build_training__batch_scales_the_rate_accumulation_does_not() -> None:
    """Twice the batch is twice the rate; cut into micro-batches it stays the same step."""
    peaks = []
    for settings in (["batch_size=8"], ["batch_size=16"], ["batch_size=16", "accumulation=2"]):
        config = pretrain("duration=9 steps", "optim.warmup=0 steps", *settings)
        plan = OrderPlan(120, config.batch_size, 0, 4)
        training = build_training(config, plan, None, build_landmark_network(config), CPU)
        peaks.append(training.values(0)["lr"])
    assert peaks == [1.5625e-5, 3.125e-5, 3.125e-5]


def test_run_length__in_steps() -> None:
    """Epochs, steps and shares of the run are counted in optimiser steps of this set."""
    length = run_length(pretrain("duration=2.5 epochs", "checkpoints.every=0.5 run"), PLAN)
    assert (length.steps_per_epoch, length.total_steps, length.save_every) == (15, 38, 19)
    assert length.num_epochs == 3
    short = run_length(pretrain("duration=3 steps", "checkpoints.every=0.001 epochs"), PLAN)
    assert (short.total_steps, short.save_every, short.num_epochs) == (3, 1, 1)


def test_build_plan__batch_larger_than_the_set(face_set_path: str) -> None:
    """A batch that no epoch can fill is refused with both numbers."""
    config = tiny("nowhere", face_set_path, "batch_size=128")
    with pytest.raises(ConfigError) as raised:
        build_plan(config, open_faces(face_set_path))
    assert raised.value.subject == "batch_size"
    assert "128" in raised.value.found
    assert "120 images" in raised.value.found


@pytest.mark.parametrize(
    ("settings", "key", "numbers"),
    [
        (["duration=20 steps", "optim.warmup=2 epochs"], "optim.warmup", ("30", "20 steps")),
        (
            ["duration=20 steps", "dino.teacher_temp.warmup_epochs=3"],
            "dino.teacher_temp.warmup_epochs",
            ("3", "2 epochs"),
        ),
    ],
)
def test_run_length__warm_up_longer_than_the_run(
    settings: list[str], key: str, numbers: tuple[str, str]
) -> None:
    """A warm-up that the set's size makes too long is refused with both lengths."""
    with pytest.raises(ConfigError) as raised:
        run_length(pretrain(*settings), PLAN)
    assert raised.value.subject == key
    for number in numbers:
        assert number in raised.value.found


def test_finetune__warm_up_longer_than_the_run() -> None:
    """Stage 1 checks its warm-up as well."""
    with pytest.raises(ConfigError, match="optim.warmup"):
        run_length(finetune("duration=20 steps", "optim.warmup=2 epochs"), PLAN)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """Folder of a short stage-1 run."""
    folder = tmp_path_factory.mktemp("stage1")
    run(tiny(folder, face_set_path, "duration=2 steps", kind=FinetuneConfig))
    return folder / "part_fvit"


def weights_config(weights: Path | str, folder: Path | str, data: str, *more: str) -> Any:
    return tiny(folder, data, f"landmarks.weights={weights}", *more)


def as_published(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(first: dict[str, Tensor] | None, second: dict[str, Tensor] | None) -> bool:
    assert first is not None
    assert second is not None
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_landmark_weights__from_every_kind_of_file(
    tmp_path: Path, face_set_path: str, stage_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folder, its checkpoint, a URI, a pretraining run and published names: same landmarks."""
    folder_config = weights_config(stage_one, tmp_path / "run", face_set_path, "duration=2 steps")
    expected = load_landmark_weights(folder_config)
    untrained = load_landmark_weights(weights_config("untrained", tmp_path, face_set_path))
    assert expected is not None
    assert not same(expected, untrained)
    run(folder_config)
    network = build_landmark_network(folder_config)
    network.load_state_dict(expected)
    flat = dict(network.state_dict())
    assert all(name.startswith(("stn.", "output_layer.")) for name in flat)
    other = {"pos_embedding": torch.zeros(3), "loss.weight": torch.zeros(4, 3)}
    published = {
        "flat.pth": {**flat, **other},
        "ddp.pth": as_published({**flat, **other}, "module."),
        "nested.pth": {"state_dict": as_published(flat, "module."), "epoch": 3},
    }
    for name, content in published.items():
        torch.save(content, tmp_path / name)
    sources: list[Any] = [
        stage_one / "checkpoints" / "step-00000002.pt",
        stage_one.as_uri(),
        tmp_path / "run" / "debug",
        tmp_path / "run" / "debug" / "checkpoints" / "step-00000002.pt",
        *(tmp_path / name for name in published),
    ]
    for source in sources:
        found = load_landmark_weights(weights_config(source, tmp_path, face_set_path))
        assert same(expected, found), source
    # As from an object store, whose files have no path here.
    monkeypatch.setattr(storage, "local_path", lambda _: None)
    config = weights_config(stage_one.as_uri(), tmp_path, face_set_path)
    assert same(expected, load_landmark_weights(config))


def test_landmark_weights__give_the_same_landmarks(
    tmp_path: Path, face_set_path: str, stage_one: Path
) -> None:
    """The frozen CNN of a pretraining run finds what stage 1's finds, in eval mode, bit by bit."""
    inputs = open_job(weights_config(stage_one, tmp_path, face_set_path))
    frozen = inputs.landmark_network()
    assert frozen is not None
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    state = landmark_state(str(stage_one))
    stage = build_landmark_network(inputs.config)  # type: ignore[arg-type]
    stage.load_state_dict({n: t for n, t in state.items() if n in stage.state_dict()})
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(frozen(images), stage.eval()(images))


@pytest.mark.parametrize(
    "change", ["model.landmark_cnn_width=0.5", "model.num_landmarks=36"], ids=["width", "landmarks"]
)
def test_landmark_weights__of_another_size(
    tmp_path: Path, face_set_path: str, stage_one: Path, change: str
) -> None:
    """Another width or number of landmarks is refused, with file, name and both shapes."""
    with pytest.raises(CheckpointError, match="in the checkpoint, .* in the model") as raised:
        load_landmark_weights(weights_config(stage_one, tmp_path, face_set_path, change))
    assert str(stage_one) in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda path: path.write_bytes(b"no checkpoint"),
        lambda path: torch.save({"teacher": {"backbone.cls_token": torch.zeros(1)}}, path),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["missing", "damaged", "without landmarks", "without tensors"],
)
def test_landmark_weights__unusable_file(
    tmp_path: Path, face_set_path: str, make: Callable[[Path], object]
) -> None:
    """A missing, damaged or foreign file is a CheckpointError that names it."""
    make(tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as raised:
        load_landmark_weights(weights_config(tmp_path / "w.pt", tmp_path, face_set_path))
    assert str(tmp_path / "w.pt") in str(raised.value)


def test_landmark_weights__grid_has_none() -> None:
    """On grid patches there is no landmark CNN, and no weights are asked for."""
    config = pretrain("landmarks.source=grid", "landmarks.weights=null")
    assert load_landmark_weights(config) is None
