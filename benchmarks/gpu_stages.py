"""What must be right on a GPU, as stages of `gpu_proof`: each takes a device and returns what it found, or raises.

Imports of the package stand inside the stages, as it may not be installable where torch is.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Found = dict[str, Any]


def is_cuda(device: str) -> bool:
    """Whether this is a GPU."""
    return device == "cuda"


def seconds_of(work: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds of a call after two unmeasured ones."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        work()
        if is_cuda(device):
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def environment(device: str) -> Found:
    """Versions, the device, and what is installed."""
    found: Found = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
    if is_cuda(device):
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        found |= {"cuda": torch.version.cuda, "capability": f"{properties.major}.{properties.minor}"}
    for name in ("numpy", "pydantic", "ray", "triton"):
        found[name] = importlib.util.find_spec(name) is not None
    return found


def case_of(device: str, **changes: Any) -> Any:
    """A small case, whose results are compared."""
    from benchmarks.plain_step import Case
    from lafs_ray.models.fvit import FViTSize

    settings: Found = {
        "size": FViTSize(width=32, depth=2, heads=2, head_dim=16, mlp_width=64),
        "num_prototypes": 64,
        "batch": 2,
        "dropout": 0.0,
        "device": torch.device(device),
        "precision": torch.float32,
        "hidden_dim": 64,
    }
    return Case(**{**settings, **changes})


def _losses(case: Any, steps: int = 20) -> list[float]:
    from benchmarks.our_step import Ours

    side, found = Ours(case, clip=3.0), []
    for number in range(steps):
        side.columns = case.columns(number)
        found.append(side.step(number))
    return found


def _furthest(found: list[float], expected: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


def steps_beside_cpu(device: str) -> Found:
    """Twenty steps in float32 have the losses of the CPU, and five of the plain step on the device."""
    from benchmarks.plain_step import Plain
    from lafs_ray.models.placement import gpu_form_everywhere

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    case, cpu = case_of(device), case_of("cpu")
    with gpu_form_everywhere():
        found = _losses(case)
    off = _furthest(found, _losses(cpu))
    plain = Plain(case, 3.0)
    plain_losses = []
    for number in range(5):
        plain.columns = case.columns(number)
        plain_losses.append(plain.step(number))
    off_plain = _furthest(found[:5], plain_losses)
    assert off < 1e-4, f"losses are {off} from the CPU's"
    assert off_plain < 1e-4, f"losses are {off_plain} from the plain step's"
    return {"largest_difference_to_cpu": off, "to_plain": off_plain, "last_loss": found[-1]}


def bfloat16_band(device: str) -> Found:
    """Twenty steps under bfloat16 autocast stay within 0.05 nats of float32's."""
    off = _furthest(_losses(case_of(device, precision=torch.bfloat16)), _losses(case_of(device)))
    assert off < 0.05, f"losses are {off} apart"
    return {"largest_difference": off}


def training_of(device: str, batch: int | None = None, **compute: Any) -> Any:
    """What a run trains with default settings, and its configuration: the base model on a GPU, else the tiny one."""
    from benchmarks.fake_step import config_of
    from lafs_ray.data.sampler import EpochSampler
    from lafs_ray.training.tasks.build import build_training
    from lafs_ray.training.tasks.init_weights import InitWeights

    size, prototypes, images = ("base", 65536, 64) if is_cuda(device) else ("tiny", 256, 2)
    config = config_of(size, batch or images, prototypes, **compute)
    sampler = EpochSampler(5_000_000, config.batch_size, 0, 4)
    return build_training(config, sampler, None, InitWeights(), torch.device(device)), config


def step_of(training: Any, config: Any, number: int, batch: Any = None) -> torch.Tensor:
    """Make a step on random tokens, and return its loss."""
    from benchmarks.fake_step import random_batch
    from lafs_ray.training.train_step import train_step

    hparams = training.hparams(number) | {"lr": 1e-4}
    return train_step(training, batch or random_batch(config, number), hparams)["loss"]


def no_host_sync(device: str) -> Found:
    """After the first step the host waits for nothing of the device; on a CPU, in its form, no scalar is read."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from lafs_ray.models.placement import gpu_form_everywhere

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "_local_scalar_dense" in func._schema.name
            return func(*args, **(kwargs or {}))

    training, config = training_of(device)
    with gpu_form_everywhere():
        step_of(training, config, 0)
        if is_cuda(device):
            torch.cuda.set_sync_debug_mode("error")
        with Reads() as reads:
            losses = [step_of(training, config, number) for number in (1, 2, 3)]
    if is_cuda(device):
        torch.cuda.set_sync_debug_mode("default")
    assert reads.count == 0, f"{reads.count} scalars are read"
    assert all(loss.isfinite() for loss in losses), losses
    return {"steps": 3, "loss": float(losses[-1])}


def checkpointing(device: str) -> Found:
    """Losses with and without activation checkpointing, with dropout, and the memory of both."""
    losses, memory = [], []
    for choice in (False, True):
        training, config = training_of(device, activation_checkpointing=choice)
        if is_cuda(device):
            torch.cuda.reset_peak_memory_stats()
        losses.append([float(step_of(training, config, number)) for number in range(3)])
        memory.append(round(torch.cuda.max_memory_allocated() / 1e9, 2) if is_cuda(device) else 0.0)
        del training
    off = _furthest(*losses)
    assert off < (1e-2 if is_cuda(device) else 1e-6), f"losses are {off} apart"
    return {"largest_difference": off, "peak_gb": memory[0], "peak_gb_checkpointed": memory[1]}


def resume(device: str) -> Found:
    """The third step after a restart has the loss of a run without one."""
    training, config = training_of(device)
    for number in range(2):
        step_of(training, config, number)
    state = training.state_dict()
    expected = float(step_of(training, config, 2))
    del training
    again, config = training_of(device)
    again.load_state_dict(state, "the state before")
    found = float(step_of(again, config, 2))
    assert abs(found - expected) < (1e-3 if is_cuda(device) else 1e-7), (found, expected)
    return {"loss": found, "without_restart": expected}


def graphs(device: str) -> Found:
    """Graphs, breaks, and nothing compiled after the first step."""
    from torch._dynamo.utils import counters

    from lafs_ray.training.compile import compile_training

    training, config = training_of(device)
    start = time.perf_counter()
    compile_training(training, config)
    found = []
    for number in range(3):
        float(step_of(training, config, number))
        found.append(counters["stats"]["unique_graphs"])
    assert found[0] == found[2] > 0, found
    assert not counters["graph_break"], dict(counters["graph_break"])
    return {"graphs": found[-1], "breaks": 0, "seconds": round(time.perf_counter() - start, 1)}


def collectives(device: str) -> Found:
    """Two gloo ranks on one device have equal weights after two steps; on a GPU, NCCL with one rank reduces."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "benchmarks.gpu_ranks", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return {"ranks": 2, "said": done.stdout.strip().splitlines()[-1]}


def ray(device: str) -> Found:
    """The loop inside `TorchTrainer` beside the bare loop."""
    import ray as installed

    if is_cuda(device):
        options = ["--device", "cuda", "--size", "base", "--prototypes", "65536"]
        options += ["--steps", "48", "--batch", "64", "--actors", "4"]
    else:
        options = ["--steps", "4", "--batch", "2", "--prototypes", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ray_cost", *options],
        capture_output=True,
        text=True,
        timeout=115 if is_cuda(device) else 350,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    lines = done.stdout.strip().splitlines()
    (row,) = (line.split() for line in lines if line.startswith("Ray "))
    # Columns: training of a step, to bare; a step with its wait, to bare.
    step_to_bare = float(row[5])
    return {
        "ray": installed.__version__,
        "step_to_bare": step_to_bare,
        "speed_of_bare": round(1 / step_to_bare, 3),
        "printed": lines[-8:],
    }


STAGES: dict[str, Callable[[str], Found]] = {
    stage.__name__: stage
    for stage in (
        *(environment, steps_beside_cpu, bfloat16_band, no_host_sync, checkpointing, resume),
        *(graphs, collectives, ray),
    )
}
