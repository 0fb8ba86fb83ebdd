from __future__ import annotations

import math
from pathlib import Path

import pytest

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.errors import ConfigError
from lafs_ray.methods.lafs import Lafs
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import run_local
from lafs_ray.training.tasks.pretrain import view_settings
from lafs_ray.training.train_step import TrainState
from lafs_ray.transforms.params import ViewSettings
from tests.training.builds import built, pretrain
from tests.training.faces import tiny

VIEWS = {
    "num_local": "3",
    "crop_area": "[0.5, 1.0]",
    "crop_aspect": "[0.9, 1.1]",
    "local_crop_area": "[0.1, 0.5]",
    "flip": "0.4",
    "opposite_flips": "true",
    "jitter": "0.1",
    "brightness": "0.3",
    "contrast": "0.3",
    "saturation": "0.3",
    "hue": "0.2",
    "gray": "0.3",
    "blur": "[0.5, 0.5, 0.1]",
    "blur_sigma_px": "[0.2, 1.0]",
    "solarize": "0.3",
}
LANDMARKS = {"source": "per_image", "noise_px": "1.0", "local_tokens": "10", "shuffle": "false", "replacement": "true"}


def settings_of(config: PretrainConfig) -> ViewSettings:
    return view_settings(config.model, config.views, config.landmarks)


def test_view_settings__every_key_of_views_and_landmarks_counts() -> None:
    """Changing any field of views or landmarks changes the ViewSettings: none is unused."""
    assert VIEWS.keys() == Views.model_fields.keys()
    assert LANDMARKS.keys() == PretrainLandmarks.model_fields.keys() - {"weights", "cache", "template"}
    base = settings_of(pretrain("views.num_local=2"))
    changed = [f"views.{name}={value}" for name, value in VIEWS.items()]
    changed += [f"landmarks.{name}={value}" for name, value in LANDMARKS.items()]
    seen = {override: settings_of(pretrain(override)) for override in changed}
    for override, settings in seen.items():
        assert settings != base, override
    assert len(set(map(repr, seen.values()))) == len(seen), "two keys do the same"


def test_view_settings__default_recipe() -> None:
    """Without overrides the views are the paper's: 2 + 8, areas 0.4-1, noise 5 px, 36 of 196."""
    config = tiny("x", "x.rec", "landmarks.weights=x.pt", file="configs/pretrain/lafs.yaml")
    settings = settings_of(config)
    assert (settings.num_global, settings.crop_area) == (2, (0.4, 1.0))
    assert settings.local_crop_area == (0.4, 1.0)
    assert (settings.blur, settings.solarize, settings.noise_px) == ((1, 0.1, 0.5), 0.2, 5)
    assert (settings.jitter, settings.gray, settings.flip) == (0.8, 0.2, 0.5)
    jitter = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    assert jitter == (0.4, 0.4, 0.2, 0.1)


def preset(name: str) -> tuple[PretrainConfig, TrainState]:
    small = ["model.size=tiny", "model.landmark_cnn_width=0.25", "accumulation=1"]
    where = ["compute.workers=0", "compute.device=cpu", "compute.precision=float32"]
    weights = ["landmarks.weights=untrained", "optim.warmup=10 epochs", "duration=41 epochs"]
    config = pretrain(*small, *where, *weights, file=f"configs/pretrain/{name}.yaml")
    return config, built(config)


def test_presets__differ_as_the_method_says() -> None:
    """`reference`: teacher in train mode, 0.07 to 0.04, with replacement; `lafs`: the reverse."""
    (lafs, ours), (reference, theirs) = preset("lafs"), preset("reference")
    assert isinstance(ours.task, Lafs)
    assert isinstance(theirs.task, Lafs)
    assert (ours.task.teacher.training, theirs.task.teacher.training) == (False, True)
    settings = settings_of(lafs), settings_of(reference)
    assert tuple(one.replacement for one in settings) == (False, True)
    # Temperatures of epochs 0, 29 (end of the warm-up) and 40, at 15 steps an epoch.
    temps = [[t.hparams(15 * epoch)["teacher_temp"] for epoch in (0, 29, 40)] for t in (ours, theirs)]
    assert temps[0] == pytest.approx([0.04, 0.07, 0.07])
    assert temps[1] == pytest.approx([0.07, 0.04, 0.04])
    for training in (ours, theirs):
        assert isinstance(training.task, Lafs)
        assert training.clip_grad == 3.0
        assert (training.task.student_temp, training.task.center.momentum) == (0.1, 0.9)
        assert training.task.freeze_last_layer_epochs == 1


def test_koleo__weight_reaches_the_task_and_a_step_reports_it(tmp_path: Path, face_set_path: str) -> None:
    """Off by default; a run with it writes its term, which is part of the loss, to metrics.jsonl."""
    default = built(pretrain()).task
    assert isinstance(default, Lafs)
    assert default.koleo == 0.0
    reports = {}
    for weight in (0.0, 0.5):
        more = (f"dino.koleo={weight}", f"run.name=koleo-{weight}", "duration=1 steps", "optim.warmup=0 steps")
        config = tiny(tmp_path, face_set_path, *more)
        run_local(prepare_run(config))
        (reports[weight],) = read_metrics(str(tmp_path / config.run.name / "metrics.jsonl"))
    assert "koleo" not in reports[0.0]
    # The same network and batch, in float32.
    expected = reports[0.0]["loss"] + 0.5 * reports[0.5]["koleo"]
    assert reports[0.5]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("more", [("batch_size=1",), ("batch_size=8", "accumulation=8")])
def test_koleo__refused_in_micro_batches_of_one_face(more: tuple[str, ...]) -> None:
    """A face alone has no nearest one."""
    with pytest.raises(ConfigError, match=r"dino\.koleo: 0\.5, with micro-batches of 1 face"):
        pretrain("dino.koleo=0.5", *more)
    pretrain(*more)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (("neighbors.share=0.25",), r"neighbors\.share: 0\.25, but neighbors\.pairs is not set"),
        (("neighbors.pairs=x", "neighbors.share=0"), r"neighbors\.share"),
        (("neighbors.pairs=x", "batch_size=6", "accumulation=2"), r"6 over 1 x 2 is 3; change batch_size"),
        (("neighbors.pairs=x", "batch_size=2", "dino.koleo=1"), r"at least 4, but batch_size=2 over 1 x 1 is 2"),
        (("neighbors.pairs=x", "distillation.teacher=y"), r"neighbors\.pairs: \S+x, with distillation\.teacher="),
        (("neighbors.pairs=x", "data.path=null", "data.mix=[{path: a, share: 1}]"), r"name that set by data\.path"),
    ],
)
def test_neighbors__refused(settings: tuple[str, ...], found: str) -> None:
    """A share of nothing, pairs that micro-batches would split, and what has no use for pairs."""
    with pytest.raises(ConfigError, match=found):
        pretrain(*settings)
    pretrain("neighbors.pairs=x", "batch_size=2")


def test_schedules__hand_computed_values() -> None:
    """At 15 steps an epoch, 4 epochs and a batch of 8: rates, decay, momentum, temperature."""
    config = pretrain(
        "duration=4 epochs",
        "optim.warmup=1 epochs",
        "dino.teacher_temp.warmup_epochs=3",
        "dino.teacher_temp.start=0.04",
        "dino.teacher_temp.end=0.07",
    )
    values = built(config).hparams
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
