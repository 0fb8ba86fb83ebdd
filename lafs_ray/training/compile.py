"""`compute.compile` and `compute.precision`: torch.compile, and warnings where they do not help."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.methods.chunked_loss import chunked_dino_loss, part_loss
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS, ssl_diagnostics
from lafs_ray.methods.distillation import Distillation
from lafs_ray.methods.lafs import Lafs
from lafs_ray.models.dropout import StochasticDepth
from lafs_ray.models.fvit import Transformer
from lafs_ray.models.placement import uses_gpu_form
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.distributed import gather_lines
from lafs_ray.training.train_step import TrainState
from lafs_ray.transforms.augment_float import Operations
from lafs_ray.transforms.device_views import DeviceViews
from lafs_ray.transforms.packed_faces import PACKED

logger = logging.getLogger(__name__)


def should_compile(config: TrainConfig, device: torch.device) -> bool:
    """Return whether a run on this device is compiled: as configured, and by default on GPUs."""
    if config.compute.compile is not None:
        return config.compute.compile
    # A landmark regression has no transformer.
    return device.type == "cuda" and not isinstance(config, LandmarkConfig)


def compile_training(training: TrainState, config: TrainConfig) -> None:
    """Compile a run's transformers before DDP wraps them, and on a GPU its loss; a collective operation.

    Rank 0 logs each reason why a rank could not compile.

    Args:
        training: the run on this rank.
        config: its configuration.
    """
    task = training.task
    networks = [task.trainable, *([task.teacher] if isinstance(task, Lafs) else [])]
    views = NUM_GLOBAL_VIEWS if isinstance(config, PretrainConfig) else 1
    # The shape of most tokens, so that the code of the trial is used again.
    shape = (config.micro_batch * views, config.model.num_landmarks + 1, configured_size(config.model).width)
    tokens = torch.zeros(shape, device=training.device)
    reason = compile_blocks(networks, tokens, training.precision)
    is_distilled = isinstance(task, Distillation)
    if (
        reason == ""
        and isinstance(task, Lafs)
        and not is_distilled
        and isinstance(config, PretrainConfig)
        and uses_gpu_form(tokens)
    ):
        num_views = NUM_GLOBAL_VIEWS + config.views.num_local
        scores = torch.zeros(
            config.micro_batch * num_views, config.head.num_prototypes, dtype=training.precision, device=training.device
        )
        reason = compile_loss(task, scores, num_views)
    if isinstance(training.transform, DeviceViews) and uses_gpu_form(tokens):
        reason = reason or compile_views(training.transform, config.micro_batch, training.device)
    reasons = gather_lines({reason} - {""})
    if training.rank == 0:
        for line in sorted(reasons):
            logger.warning(line)


def compile_blocks(networks: Sequence[nn.Module], tokens: Tensor, precision: torch.dtype) -> str:
    """Compile the blocks of all transformers, unless that fails for the first one.

    Block by block and in place: all blocks share their machine code, so that compiling twelve takes
    as long as one; names of parameters, checkpoints and DDP are unaffected. Each shape of tokens, and training and
    evaluation, have code of their own.

    Args:
        networks: whose transformers are compiled.
        tokens: of the shape, dtype and device of a step's, [B, n, D]; their values do not matter.
        precision: dtype of autocast in the step; float32 disables it.

    Returns:
        The reason why nothing was compiled, in one line; empty if it was.
    """
    transformers = [module for network in networks for module in network.modules() if isinstance(module, Transformer)]
    trial = copy.deepcopy(transformers[0].layers[0])
    try:
        _compile(trial)
        _try(trial, transformers[0].depth, tokens, precision)
    # A missing compiler, an old GPU, an unsupported operation: any error of the tool chain.
    except Exception as error:
        return f"compute.compile: not compiled, as torch.compile failed with {_reason(error)}"
    for transformer in transformers:
        for block in transformer.layers:
            _compile(block)
    return ""


def compile_loss(task: Lafs, scores: Tensor, num_views: int) -> str:
    """Compile the loss of the form for GPUs and its diagnostics, unless that fails.

    Args:
        task: whose loss is compiled.
        scores: of the shape, dtype and device of a step's, [V·B, K]; their values do not matter.
        num_views: V, global views included.

    Returns:
        The reason why it was not compiled, in one line; empty if it was.
    """
    part = torch.compile(part_loss, dynamic=False)
    diagnostics = torch.compile(ssl_diagnostics, dynamic=False)
    rows, device = len(scores) // num_views * NUM_GLOBAL_VIEWS, scores.device
    targets = torch.full((rows, scores.shape[1]), 1 / scores.shape[1], device=device)
    # As in the step: code compiled without autocast is not used with it.
    autocast = torch.autocast(device.type, scores.dtype, enabled=scores.dtype != torch.float32)
    settings: dict[str, Any] = {"student_temp": task.student_temp, "num_views": num_views, "part": part}
    try:
        with autocast:
            chunked_dino_loss(scores.requires_grad_(), targets, **settings)
            embeddings = torch.zeros(rows, task.trainable.backbone.cls_token.shape[-1], device=device)
            diagnostics(scores, targets, task.center.center, embeddings, student_temp=task.student_temp)
    except Exception as error:
        return f"compute.compile: the loss is not compiled, as torch.compile failed with {_reason(error)}"
    task.loss_part, task.diagnostics = part, diagnostics
    return ""


def compile_views(views: DeviceViews, batch: int, device: torch.device) -> str:
    """Compile the crops, colors and blur of `crops.device: cuda`, unless that fails.

    Args:
        views: whose operations are compiled.
        batch: faces of a micro-batch.
        device: of the views.

    Returns:
        The reason why they were not compiled, in one line; empty if they were.
    """
    plain = views.operations
    views.operations = Operations(*(torch.compile(each, dynamic=False) for each in vars(plain).values()))
    try:
        views({PACKED: torch.zeros(batch, views.layout.row_bytes, dtype=torch.uint8, device=device)})
    except Exception as error:
        views.operations = plain
        return f"compute.compile: the views are not compiled, as torch.compile failed with {_reason(error)}"
    return ""


def _compile(block: nn.Module) -> None:
    # The shapes of a run are few and fixed; code for dynamic shapes is slower.
    block.compile(dynamic=False)


def _try(block: nn.Module, depth: StochasticDepth, tokens: Tensor, precision: torch.dtype) -> None:
    """Run forward and backward as in a step; random generators are restored."""
    devices = [tokens.device] if tokens.device.type == "cuda" else []
    inputs = tokens.detach().requires_grad_()
    with torch.random.fork_rng(devices):
        attention_path, mlp_path = depth(inputs)[:2]
        with torch.autocast(tokens.device.type, precision, enabled=precision != torch.float32):
            outputs = block(inputs, attention_path, mlp_path, False)
        torch.autograd.grad(outputs.float().sum(), [inputs])


def _reason(error: Exception) -> str:
    """Return the first line of the cause, which dynamo puts behind its own error."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300]}" if lines else type(cause).__name__


_SIDE, _REPEATS = 256, 3
# Processors with bfloat16 instructions are faster than in float32; emulation takes twice to a hundred times as long.
_TOO_SLOW = 3.0


def slow_arithmetic(precision: torch.dtype, device: torch.device) -> str:
    """Return a warning if a precision is much slower than float32; empty if it is not.

    Measured on a product of two 256×256 matrices, as it depends on the processor and on the build of PyTorch.

    Args:
        precision: of the networks.
        device: of the networks; on a GPU nothing is measured.
    """
    if device.type != "cpu" or precision == torch.float32:
        return ""
    times = _product_s(precision) / _product_s(torch.float32)
    if times < _TOO_SLOW:
        return ""
    name = str(precision).removeprefix("torch.")
    return (
        f"compute.precision is {name}, in which a matrix product takes {times:.0f} times as long "
        "as in float32 on this processor: set compute.precision=float32"
    )


def _product_s(precision: torch.dtype) -> float:
    """Return the seconds of a matrix product: the least of several, after a warm-up."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=precision)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
