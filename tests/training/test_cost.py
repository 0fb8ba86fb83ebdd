"""Memory and FLOP of a run by its shapes, beside what a step is counted to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_step import config_of
from benchmarks.plain_step import Case
from benchmarks.step_counts import count_step
from benchmarks.step_figures import TOTAL, count_flops
from lafs_ray.compat import import_timm
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.methods.distillation import Distillation
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.models.checkpoints.state_dicts import PublishedState
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.models.readout import WHITENING_PREFIX
from lafs_ray.training import cost
from lafs_ray.training.run_length import Length
from lafs_ray.training.tasks.distillation import build_distillation
from lafs_ray.training.tasks.pretrain import build_lafs


def config(size: str = "base", batch: int = 64, prototypes: int = 65536, **changes: Any) -> PretrainConfig:
    """Default settings, but for compute and the model."""
    model = changes.pop("model", {})
    made = config_of(size, batch, prototypes, **changes)
    return made.model_copy(update={"model": made.model.model_copy(update=model)})


@pytest.mark.parametrize(
    "made",
    [
        config(),
        config("small", model={"dropout": 0.0}),
        config("small", model={"drop_path_per_sample": True}),
        config("small", precision="float32"),
        config(model={"student": "timm/vit_small_patch16_224"}),
    ],
    ids=["base", "no dropout", "per sample", "float32", "timm"],
)
def test_saved_bytes__as_counted(made: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula is within 3 % of the count."""
    import_timm()
    # timm reads its rates of stochastic depth, all 0 here, from a tensor, which has no data in a counted step.
    timm = "timm.models.vision_transformer.calculate_drop_path_rates"
    monkeypatch.setattr(timm, lambda rate, depth: [rate] * depth)
    assert cost.saved_bytes(made) == pytest.approx(count_step(made).saved / made.batch_size, rel=0.03)


def test_saved_bytes__checkpointing() -> None:
    """At most what is counted and one block, which is computed again."""
    made = config(activation_checkpointing=True)
    counted = count_step(made).saved / made.batch_size
    block = cost.saved_bytes(config()) / FVIT_SIZES["base"].depth
    assert counted < cost.saved_bytes(made) < counted + 1.2 * block


@pytest.mark.parametrize("made", [config("tiny", prototypes=512), config(model={"student": "timm/test_vit"})])
def test_count_parameters__as_built(made: PretrainConfig) -> None:
    """All of the student's."""
    student = build_lafs(made, torch.device("cpu")).trainable
    assert cost.count_parameters(made) == sum(each.numel() for each in student.parameters())


def test_image_flops__as_counted() -> None:
    """Those of the plain step: 328 GFLOP."""
    case = Case(FVIT_SIZES["base"], 65536, 1, 0.0, torch.device("cpu"), torch.float32)
    assert cost.image_flops(config()) == pytest.approx(count_flops(case)[TOTAL], rel=0.001)
    assert cost.image_flops(config()) == pytest.approx(328e9, rel=0.01)


def distilled(made: PretrainConfig) -> tuple[Distillation, Architecture]:
    """A distillation from an untrained network of another size, whose 26 outputs are whitened."""
    frozen = Architecture(
        made.model.num_landmarks, FVIT_SIZES["small"], made.model.patch_size, readout="all", whitened_dim=48
    )
    transformer, whitening = frozen.build_transformer(), frozen.build_whitening()
    assert whitening is not None
    state = transformer.state_dict()
    state |= {WHITENING_PREFIX + name: each for name, each in whitening.state_dict().items()}
    weights = NetworkWeights(frozen, PublishedState(state), "none")
    return build_distillation(made, weights, torch.device("cpu")), frozen


def test_distillation__as_built_and_counted() -> None:
    """Parameters and FLOP are those of the student with its linear head, and of a frozen forward pass."""
    made = config("tiny", 4, 512, model={"num_landmarks": 25, "dropout": 0.0, "drop_path": 0.0})
    made = made.model_copy(update={"landmarks": made.landmarks.model_copy(update={"local_tokens": 10})})
    task, frozen = distilled(made)
    parameters = sum(each.numel() for each in task.trainable.parameters())
    assert cost.count_parameters(made, frozen) == parameters < cost.count_parameters(made)
    networks = cost.step_memory(made, frozen).networks
    assert networks == 22 * parameters + 4 * sum(each.numel() for each in task.frozen.parameters())
    seen, local = torch.zeros(2 * 4, 25, 192), torch.zeros(made.views.num_local * 4, 10, 192)
    # Attention as two products, which the counter knows, and the CPU's form of the blocks, which takes both lengths.
    flops = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for step in (lambda: task.frozen(seen), lambda: task.trainable([seen, local])[0]):
            with FlopCounterMode(display=False) as counter:
                out = step()
            flops.append(counter.get_total_flops())
    assert out.shape == (len(seen) + len(local), 48)
    cosines = 2 * len(out) * 48 * 4
    # The last block computes no other token than the class token's.
    last = 1 - 0.5 / FVIT_SIZES["tiny"].depth
    counted = (flops[0] + 3 * (flops[1] + cosines)) / 4
    assert cost.image_flops(made, frozen) * last < counted < cost.image_flops(made, frozen)


@pytest.mark.parametrize("size", ["small", "base"])
def test_distillation__saved_bytes(size: str) -> None:
    """Without DINO's head an image keeps what its transformer and the cosines do, within 3 % of the count."""
    made = config(size, 4)
    task, frozen = distilled(made)
    inputs = {
        "global_tokens": torch.zeros(4, 2, made.model.num_landmarks, 192),
        "local_tokens": torch.zeros(4, made.views.num_local, made.landmarks.local_tokens, 192),
    }
    weights = {each.untyped_storage()._cdata for each in task.trainable.parameters()}
    # Weights in the step's precision are counted with the networks; of these few images they would be many.
    shapes = {shape for each in task.trainable.parameters() for shape in (each.shape, each.shape[::-1])}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and tensor.shape not in shapes:
            kept[storage._cdata] = storage
        return tensor

    with gpu_form_everywhere(), saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        task.loss(task.trainable, inputs, {})
    counted = sum(storage.nbytes() for storage in kept.values()) / 4
    assert cost.saved_bytes(made, frozen) == pytest.approx(counted, rel=0.03)


def test_require_memory__names_what_helps() -> None:
    """The default batch on one card of 141 GB is refused with the arithmetic; the settings it names fit."""
    made, available = config(batch=1024), 141 * 10**9
    with pytest.raises(ConfigError, match=r"at least 20\d\.\d GB") as raised:
        cost._require(made, "H200", available)
    text = str(raised.value)
    assert "at most the 141.0 GB of this GPU (H200)" in text
    assert "compute.activation_checkpointing=true" in text
    found = re.search(r"raise accumulation to (\d+)", text)
    assert found is not None, text
    cost._require(made.model_copy(update={"accumulation": int(found[1])}), "H200", available)
    cost._require(config(batch=1024, activation_checkpointing=True), "H200", available)
    with pytest.raises(ConfigError):
        cost._require(made.model_copy(update={"accumulation": int(found[1]) // 2}), "H200", available)


def test_require_memory__networks_alone_do_not_fit() -> None:
    """Where no micro-batch is small enough, a smaller network is advised, and nothing that would not help."""
    made = config(activation_checkpointing=True, workers=0)
    with pytest.raises(ConfigError, match=r"1\.0 GB of this GPU") as raised:
        cost._require(made, "small", 10**9)
    assert raised.value.fix == "choose a smaller model.size or head.num_prototypes"


def test_require_memory__on_a_cpu() -> None:
    """Nothing is known, nothing refused."""
    cost.require_memory(config(batch=1 << 20), torch.device("cpu"))


def test_describe_cost__lines() -> None:
    """Memory, hours, CPUs and network, of eight GPUs."""
    lines = cost.describe_cost(config(batch=1024, workers=8), Length(4000, 160_000, 4000))
    assert [line.split(":")[0] for line in lines] == ["memory", "time", "CPUs", "network"]
    # 163.8 M images at 8 × 1,083 images/s.
    assert re.search(r"time: 5\.3 hours|time: 5\.2 hours", lines[1]), lines
