"""Finetuning with frozen first blocks and with LoRA: what moves, what a checkpoint gives, resume, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import ConfigError
from lafs_ray.methods.supervised import Supervised
from lafs_ray.training.checkpoint.inference import load_embedder, load_for_inference
from lafs_ray.training.prepare import check_run, prepare_run
from lafs_ray.training.tasks.build import build_training
from tests.training.builds import CPU
from tests.training.faces import run, tiny

SHORT = ["run.name=net", "optim.warmup=1 steps"]
LORA = ["lora.rank=4", "lora.alpha=8", "freeze.blocks=1", "freeze.landmarks=1 run"]
INPUTS = ("pos_embedding", "cls_token", "patch_to_embedding.")


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> list[str]:
    """Settings that start from a short stage 1."""
    folder = tmp_path_factory.mktemp("donor")
    run(tiny(folder, face_set_path, *SHORT, "duration=1 steps", kind=FinetuneConfig))
    return [*SHORT, "duration=4 steps", f"start.transformer={folder}/net"]


@pytest.fixture(scope="module")
def lora_run(donor: list[str], tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> FinetuneConfig:
    """A finished run with LoRA in the last block, over a frozen landmark CNN."""
    config = config_of(tmp_path_factory.mktemp("lora"), face_set_path, *donor, *LORA)
    run(config)
    return config


def config_of(folder: Path, data: str, *settings: str) -> FinetuneConfig:
    return tiny(folder, data, *settings, kind=FinetuneConfig)


def task_of(config: FinetuneConfig) -> Supervised:
    inputs = check_run(config)
    training = build_training(inputs.config, inputs.sampler, inputs.num_classes, inputs.init_weights, CPU)
    assert isinstance(training.task, Supervised)
    return training.task


def backbone(path: Path | str) -> dict[str, Tensor]:
    return load_for_inference(str(path)).state.backbone


def checkpoint(folder: Path, step: int = 4) -> Path:
    return folder / "net" / "checkpoints" / f"step-{step:08}.pt"


def test_frozen_blocks__stay_as_they_were(donor: list[str], tmp_path: Path, face_set_path: str) -> None:
    """Block, patch embedding, class token and positions keep every bit; the blocks after them and the norm move."""
    run(config_of(tmp_path, face_set_path, *donor, "freeze.blocks=1"))
    before, after = backbone(donor[-1].partition("=")[2]), backbone(checkpoint(tmp_path))
    frozen = {name for name in before if name.startswith((*INPUTS, "transformer.layers.0."))}
    moving = {name for name in before if name.startswith(("transformer.", "mlp_head."))} - frozen
    assert len(frozen) > len(INPUTS) + 8
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in moving if name.endswith(".weight"))


def test_frozen_blocks__drop_nothing(donor: list[str], tmp_path: Path, face_set_path: str) -> None:
    """In a training step a frozen block has no dropout, the next one has; afterwards both are in train mode."""
    settings = ["freeze.blocks=1", "freeze.landmarks=1 run", "model.dropout=0.5", "model.drop_path=0.5"]
    task = task_of(config_of(tmp_path, face_set_path, *donor, *settings))
    seen: list[Tensor] = []
    blocks = task.trainable.model.transformer.layers
    for block in blocks[:2]:
        block.register_forward_hook(lambda *found: seen.append(found[2].detach()))
    batch = {"images": torch.randint(256, (8, 112, 112, 3), dtype=torch.uint8), "label": torch.arange(8)}
    for seed in (1, 2):
        torch.manual_seed(seed)
        task.loss(task.trainable.train(), batch, {"landmarks_frozen": 1.0})
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[1], seen[3])
    assert all(block.training for block in blocks)


def test_lora__trains_its_changes_and_the_class_centers(donor: list[str], lora_run: FinetuneConfig) -> None:
    """With the landmark CNN frozen too; the base weights keep every bit, and only trained parameters have moments."""
    before = backbone(donor[-1].partition("=")[2])
    content = torch.load(checkpoint(Path(lora_run.run.storage)), weights_only=True)
    after = {name.removeprefix("model."): tensor for name, tensor in content["model"].items()}
    names = [name for name in before if not name.startswith(("stn.", "output_layer."))]
    assert all(torch.equal(before[name], after[name]) for name in names)
    changes = [name for name in after if name.endswith(("lora_up", "lora_down"))]
    assert changes
    assert not [name for name in changes if name.startswith("transformer.layers.0.")]
    assert all(after[name].abs().max() > 0 for name in changes)
    assert len(content["optimizer"]["state"]) == len(changes) + 1


def test_lora__checkpoint_has_the_changes_in_its_weights(donor: list[str], lora_run: FinetuneConfig) -> None:
    """What is loaded is a network without LoRA that embeds as the trained one does."""
    folder, task = Path(lora_run.run.storage), task_of(lora_run)
    task.trainable.load_state_dict(torch.load(checkpoint(folder), weights_only=True)["model"])
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    start = donor[-1].partition("=")[2]
    with torch.inference_mode():
        expected = task.trainable.model.eval()(images)
        found, unchanged = load_embedder(str(folder / "net"))(images), load_embedder(start)(images)
    # Sums in another order; embeddings are of size 1.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - unchanged).abs().max() > 1e-3
    assert backbone(folder / "net").keys() == backbone(start).keys()


def test_lora__interrupted_and_continued(donor: list[str], tmp_path: Path, face_set_path: str) -> None:
    """A run that is killed and continued is the undisturbed one, bit by bit."""
    every = ["checkpoints.every=2 steps", "lora.rank=2", "freeze.transformer=1 steps"]
    whole, broken = (config_of(tmp_path / name, face_set_path, *donor, *every) for name in "ab")
    expected = run(whole)
    assert run(broken, killed_at=3).logged[-1] == "killed"
    again = run(broken)
    assert again.logged[0] == "continuing net at step 2 of 4"
    assert again.exact == expected.exact
    states = [torch.load(checkpoint(tmp_path / name), weights_only=True)["model"] for name in "ab"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["freeze.blocks=1"], r"freeze\.blocks: 1, but the transformer starts from scratch"),
        (["lora.rank=4"], r"lora\.rank: 4, but the transformer starts from scratch"),
        (["lora.alpha=4"], r"alpha: 4, but rank is not set"),
        (["lora.rank=4", "start.transformer=x", "freeze.transformer=1 run"], r"freeze\.transformer=1 run freezes"),
    ],
)
def test_settings__that_train_nothing(settings: list[str], message: str, tmp_path: Path, face_set_path: str) -> None:
    """Frozen random weights, a scale of nothing, and frozen changes are refused with the settings to change."""
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, face_set_path, *SHORT, *settings)


@pytest.mark.parametrize(("more", "most"), [([], "at most {}"), (["lora.rank=4"], "at most {}, as lora.rank")])
def test_frozen_blocks__more_than_there_are(
    donor: list[str], tmp_path: Path, face_set_path: str, more: list[str], most: str
) -> None:
    """Found when the inputs are checked, with the depth of the transformer."""
    with pytest.raises(ConfigError) as caught:
        check_run(config_of(tmp_path, face_set_path, *donor, "freeze.blocks=9", *more))
    assert caught.value.found == "9, of a transformer of 2 blocks"
    assert caught.value.expected.startswith(most.format(2 - len(more)))


def test_extended_run__keeps_its_frozen_blocks(donor: list[str], tmp_path: Path, face_set_path: str) -> None:
    """Blocks and LoRA decide which parameters an optimizer has, so a longer run cannot change them."""
    first: Any = config_of(tmp_path, face_set_path, *donor, "freeze.blocks=1")
    prepare_run(first)
    other = config_of(tmp_path, face_set_path, *donor, "freeze.blocks=2", "duration=8 steps")
    with pytest.raises(ConfigError, match=r"freeze\.blocks: 1 -> 2"):
        prepare_run(other, extend=True)
