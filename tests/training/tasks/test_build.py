from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from lafs_ray.config.finetune import MarginLoss, Mixup
from lafs_ray.config.loader import Section
from lafs_ray.config.pretrain import Dino, Head
from lafs_ray.config.train import Model
from lafs_ray.config.views import PretrainLandmarks, Views
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.errors import ConfigError
from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.methods.lafs import Lafs
from lafs_ray.methods.mixup import MixupSchedule
from lafs_ray.models.dropout import StochasticDepth
from lafs_ray.models.fvit import FViT
from lafs_ray.models.partial_fc import PartialFC
from lafs_ray.training.tasks.build import build_training
from lafs_ray.training.train_step import TrainState
from lafs_ray.transforms.params import ViewSettings
from tests.training.builds import CPU, NO_WEIGHTS, built, pretrain


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
    "dino.center_momentum=0.5",
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


# A transformer has tokens; that they are landmarks is known to its callers alone.
RENAMED = {"num_landmarks": "num_tokens"}
PASSED_ON: list[tuple[type[Section], Any, set[str]]] = [
    (Views, ViewSettings, set()),
    (PretrainLandmarks, ViewSettings, {"weights", "cache", "template"}),
    (Dino, Lafs, {"teacher_temp", "teacher_momentum"}),
    (Head, DINOHead, set()),
    (MarginLoss, PartialFC, set()),
    (Mixup, MixupSchedule, set()),
    (
        Model,
        FViT,
        {"patch_size", "token_features", "landmark_cnn", "landmark_cnn_width", "landmark_start", "landmark_scaling"}
        # Another class in FViT's place.
        | {"student"},
    ),
]


@pytest.mark.parametrize(("section", "receiver", "not_passed"), PASSED_ON)
def test_settings__have_one_name_and_one_default(section: type[Section], receiver: Any, not_passed: set[str]) -> None:
    """What a setting is passed to has a parameter of its name, without another default."""
    parameters = inspect.signature(receiver).parameters
    for name, field in section.model_fields.items():
        if name not in not_passed:
            parameter = parameters[name if name in parameters else RENAMED[name]]
            if parameter.default is not inspect.Parameter.empty:
                assert parameter.default == field.default, (section, name)


def signature(training: TrainState) -> str:
    """Everything about a pretraining run that its configuration decides."""
    task = training.task
    assert isinstance(task, Lafs)
    weights = [(name, tuple(p.shape)) for name, p in task.trainable.named_parameters()]
    first = next(task.trainable.parameters()).flatten()[:3].tolist()
    values = [training.hparams(step) for step in range(45)]
    plain = (training.accumulation, training.clip_grad, training.precision, training.seed)
    temps = (task.student_temp, task.center.momentum, task.freeze_last_layer_epochs)
    modules = list(task.trainable.modules())
    rates = [m.rate for m in modules if isinstance(m, StochasticDepth)]
    assert rates, "stochastic depth has another name now"
    return repr((weights, first, values, plain, temps, rates, task.teacher.training, modules))


def test_build_training__every_other_key_counts() -> None:
    """Changing any key of optim, dino, head or model changes the networks or the schedules."""
    base = signature(built(pretrain(*WARM)))
    for override in OTHER_KEYS:
        assert signature(built(pretrain(*WARM, override))) != base, override


def test_build_training__same_seed_same_weights() -> None:
    """Initial weights depend on the seed alone; student and teacher begin equal."""
    first, second = built(pretrain()), built(pretrain())
    torch.rand(7)
    states = [one.task.trainable.state_dict() for one in (first, second)]
    assert isinstance(first.task, Lafs)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, first.task.teacher.state_dict()[name]), name


def test_build_training__batch_scales_the_rate_accumulation_does_not() -> None:
    """Twice the batch is twice the rate; cut into micro-batches it stays the same step."""
    peaks = []
    for settings in (["batch_size=8"], ["batch_size=16"], ["batch_size=16", "accumulation=2"]):
        config = pretrain("duration=9 steps", "optim.warmup=0 steps", *settings)
        sampler = EpochSampler(120, config.batch_size, 0, 4)
        training = build_training(config, sampler, None, NO_WEIGHTS, CPU)
        peaks.append(training.hparams(0)["lr"])
    assert peaks == [1.5625e-5, 3.125e-5, 3.125e-5]
