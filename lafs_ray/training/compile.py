"""`compute.compile`: torch.compile for the transformers of a run, or why it is not used."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.methods.lafs import Lafs
from lafs_ray.models.fvit import FVIT_SIZES, Transformer
from lafs_ray.training.distributed import gather_lines
from lafs_ray.training.loop import TrainState

logger = logging.getLogger(__name__)


def compile_training(training: TrainState, config: TrainConfig) -> None:
    """Compile what a run trains, before DDP wraps it; a collective operation.

    Rank 0 logs each reason why a rank does without.

    Args:
        training: the run on this rank.
        config: its configuration.
    """
    method = training.task
    networks = [method.trainable, *([method.teacher] if isinstance(method, Lafs) else [])]
    views = NUM_GLOBAL_VIEWS if isinstance(config, PretrainConfig) else 1
    # The shape of most tokens: what the trial compiles need not be compiled again.
    shape = (
        config.micro_batch * views,
        config.model.num_landmarks + 1,
        FVIT_SIZES[config.model.size].width,
    )
    tokens = torch.zeros(shape, device=training.device)
    reason = compile_blocks(networks, tokens, training.precision)
    reasons = gather_lines({reason} - {""})
    if training.rank == 0:
        for line in sorted(reasons):
            logger.warning(line)


def compile_blocks(networks: Sequence[nn.Module], tokens: Tensor, precision: torch.dtype) -> str:
    """Compile the blocks of all transformers, unless the first one shows that it cannot be done.

    Block by block and in place: all blocks share their machine code, so that compiling takes as
    long for twelve as for one; names of parameters, checkpoints and DDP see no difference. For each
    shape of tokens and for training and evaluation there is code of its own.

    Args:
        networks: whose transformers are compiled.
        tokens: as the first one gets them in a step, [B, n, D] on its device; the numbers do not
            matter.
        precision: dtype of autocast in the step; float32 switches it off.

    Returns:
        Why nothing was compiled, in a line; empty where it was.
    """
    transformers = [
        module
        for network in networks
        for module in network.modules()
        if isinstance(module, Transformer)
    ]
    trial = copy.deepcopy(transformers[0].layers[0])
    try:
        _compile(trial)
        _try(trial, tokens, precision)
    # A compiler that is missing, a GPU that is too old, an operation without code: any error of
    # the tool chain means the same here.
    except Exception as error:
        return f"compute.compile: not compiled, as torch.compile failed with {_reason(error)}"
    for transformer in transformers:
        for block in transformer.layers:
            _compile(block)
    return ""


def _compile(block: nn.Module) -> None:
    # The shapes of a run are few and fixed; code for any shape is slower.
    block.compile(dynamic=False)


def _try(block: nn.Module, tokens: Tensor, precision: torch.dtype) -> None:
    """Forward and backward as in a step, without a trace in generators."""
    devices = [tokens.device] if tokens.device.type == "cuda" else []
    given = tokens.detach().requires_grad_()
    with torch.random.fork_rng(devices):
        with torch.autocast(tokens.device.type, precision, enabled=precision != torch.float32):
            mapped = block(given)
        torch.autograd.grad(mapped.float().sum(), [given])


def _reason(error: Exception) -> str:
    """The first line that says something; dynamo puts the cause behind its own headline."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300]}" if lines else type(cause).__name__


_SIDE = 256


_REPEATS = 3


# Processors with the arithmetic are faster than in float32, those that imitate it well up to twice
# as slow, those that imitate it badly a hundred times.
_TOO_SLOW = 3.0


def slow_arithmetic(precision: torch.dtype, device: torch.device) -> str:
    """What to say of a precision that costs many times what float32 does; empty if none does.

    Measured on a product of two 256×256 matrices, as what a build of PyTorch makes of a processor's
    instructions is not to be read off either.

    Args:
        precision: of the networks.
        device: where they run; on a GPU nothing is measured.
    """
    if device.type != "cpu" or precision == torch.float32:
        return ""
    times = _product_s(precision) / _product_s(torch.float32)
    if times < _TOO_SLOW:
        return ""
    name = str(precision).removeprefix("torch.")
    return (
        f"compute.precision is {name}, in which this processor takes {times:.0f} times as long for "
        "a product of matrices as in float32: set compute.precision=float32"
    )


def _product_s(precision: torch.dtype) -> float:
    """Seconds that a product takes: the shortest of several, the first of which prepares."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=precision)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
