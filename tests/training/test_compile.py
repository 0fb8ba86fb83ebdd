"""`compute.compile` and `compute.activation_checkpointing`: what they change and what not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.models.fvit import Transformer
from lafs_ray.training.compile import compile_training, should_compile
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.train_step import TrainState, train_step
from tests.training.builds import built, finetune, pretrain
from tests.training.faces import logged, run, tiny

COMPILER = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"torch.compile needs a C++ compiler, found no {COMPILER}"
)
KINDS = ["pretrain", "finetune"]
NO_DROPOUT = ["model.dropout=0", "model.drop_path=0"]


def configured(kind: str, *overrides: str) -> Any:
    return pretrain(*overrides) if kind == "pretrain" else finetune(*overrides)


def training_of(config: Any, kind: str) -> TrainState:
    return built(config, None if kind == "pretrain" else 12)


def batch(kind: str, step: int) -> StepBatch:
    """Eight images, as the two kinds get them."""
    generator = np.random.default_rng(step)
    shapes = {"global_tokens": (8, 2, 49, 768), "local_tokens": (8, 2, 9, 768)}
    if kind == "finetune":
        shapes = {"images": (8, 112, 112, 3)}
    columns = {name: generator.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}
    if kind == "finetune":
        columns["label"] = generator.integers(0, 12, 8)
    return StepBatch(step, 1, columns, [])


def trained(training: TrainState, kind: str, steps: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and gradient norms of steps, and what they made of the weights."""
    noted = []
    for step in range(steps):
        values = training.hparams(step) | {"lr": 1e-3}
        metrics = train_step(training, batch(kind, step), values)
        noted += [metrics["loss"], metrics["gradient_norm_max"]]
    return noted, [each.detach() for each in training.task.trainable.state_dict().values()]


def blocks_of(training: TrainState) -> list[torch.nn.Module]:
    modules = training.task.trainable.modules()
    return [block for each in modules if isinstance(each, Transformer) for block in each.layers]


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing__changes_no_bit(kind: str) -> None:
    """With dropout, blocks are computed twice, and losses, gradients and weights are the same."""
    results, calls = [], []
    for option in ("false", "true"):
        config = configured(kind, f"compute.activation_checkpointing={option}")
        training = training_of(config, kind)
        count: list[int] = []
        blocks_of(training)[0].register_forward_pre_hook(lambda *_, n=count: n.append(1))
        results.append((*trained(training, kind), list(training.state_dict()["model"])))
        calls.append(len(count))
    assert config.model.dropout > 0
    assert config.model.drop_path > 0
    assert calls[1] == 2 * calls[0] > 0
    (noted, weights, names), (noted_again, weights_again, names_again) = results
    assert names == names_again
    assert torch.equal(torch.stack(noted), torch.stack(noted_again)), (noted, noted_again)
    for name, one, other in zip(names, weights, weights_again, strict=True):
        assert torch.equal(one, other), name


def compiled(config: Any, kind: str) -> TrainState:
    training = training_of(config, kind)
    with logged() as lines:
        compile_training(training, config)
    assert lines == []
    assert all(block._compiled_call_impl is not None for block in blocks_of(training))
    return training


def assert_close(found: TrainState, expected: TrainState, kind: str) -> None:
    """Two steps have the same losses but for sums in another order, in float32.

    After the first step the weights differ as well: AdamW's first steps have the size of the
    learning rate, and where a gradient is nearly zero rounding decides their direction. Hence a mean over all weights,
    of which a hundredth of the learning rate is allowed.
    """
    (noted, weights), (plain_noted, plain_weights) = (trained(training, kind) for training in (found, expected))
    torch.testing.assert_close(torch.stack(noted), torch.stack(plain_noted), rtol=1e-4, atol=1e-6)
    joined, plain_joined = (torch.cat([each.flatten().float() for each in state]) for state in (weights, plain_weights))
    assert float((joined - plain_joined).abs().mean()) < 1e-5
    assert list(found.state_dict()["model"]) == list(expected.state_dict()["model"])


@needs_compiler
def test_compiled_finetuning__agrees_with_eager() -> None:
    """Without dropout, compiled blocks train as others do, under the same names."""
    config = configured("finetune", *NO_DROPOUT)
    assert_close(compiled(config, "finetune"), training_of(config, "finetune"), "finetune")


@needs_compiler
@pytest.mark.long
def test_compiled_pretraining__agrees_with_eager() -> None:
    """The same of student and teacher: three shapes to compile."""
    config = configured("pretrain", *NO_DROPOUT)
    training = compiled(config, "pretrain")
    for block in training.task.teacher.backbone.transformer.layers:
        assert block._compiled_call_impl is not None
    assert_close(training, training_of(config, "pretrain"), "pretrain")


@needs_compiler
@pytest.mark.long
def test_compiled_finetuning__same_seed_same_losses() -> None:
    """With dropout, equal steps have equal losses to the bit, with and without checkpointing."""
    results = []
    for option in ("false", "false", "true"):
        config = configured("finetune", f"compute.activation_checkpointing={option}")
        noted, weights = trained(compiled(config, "finetune"), "finetune")
        results.append((torch.stack(noted), torch.cat([each.flatten() for each in weights])))
    for noted, weights in results[1:]:
        assert torch.equal(noted, results[0][0]), (noted, results[0][0])
        assert torch.equal(weights, results[0][1])


def test_compile__by_default_on_gpus_alone() -> None:
    """Unless the configuration says otherwise, and never a network without a transformer."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    config = configured("pretrain")
    assert config.compute.compile is None
    assert should_compile(config, gpu)
    assert not should_compile(config, cpu)
    for choice in (True, False):
        chosen = configured("finetune", f"compute.compile={str(choice).lower()}")
        assert should_compile(chosen, gpu) == should_compile(chosen, cpu) == choice
    regression = LandmarkConfig.model_construct(compute=config.compute)
    assert not should_compile(regression, gpu)


def test_compile__without_a_compiler(tmp_path: Path, face_set_path: str) -> None:
    """A warning gives the reason, and the run is that without compute.compile."""
    options = ["duration=2 steps", "landmarks.source=grid"]
    expected = run(tiny(tmp_path / "plain", face_set_path, "run.name=run", *options))
    torch._dynamo.reset()
    broken = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(broken):
        settings = ["run.name=run", "compute.compile=true", *options]
        found = run(tiny(tmp_path / "compiled", face_set_path, *settings))
    torch._dynamo.reset()
    lines = [line for line in found.logged if line.startswith("compute.compile: ")]
    assert len(lines) == 1, found.logged
    assert "no-such-compiler" in lines[0] or "compiler" in lines[0].lower(), lines
    assert "\n" not in lines[0]
    assert found.exact == expected.exact
