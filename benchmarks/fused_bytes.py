"""Count the bytes that a compiled block moves an image, matrix products and attention left out.

    python -m benchmarks.fused_bytes --size base
    python -m benchmarks.fused_bytes --size base --kernels

Inductor schedules a block of the student (with dropout and stochastic depth) and of the teacher in the form for GPUs
and in bfloat16, as for a GPU (`benchmarks.gpu_fusion`); the bytes of each fused kernel are added up. The loss is
counted likewise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fake_step import config_of
from benchmarks.gpu_fusion import Kernel, fused_kernels
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.methods.chunked_loss import part_loss
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.training.tasks.networks import build_transformer


@dataclass(frozen=True)
class FusedBytes:
    """Bytes read and written by fused kernels.

    Args:
        student: of a block, forward and backward, a token.
        student_last: of the last block, which computes the class token alone, likewise.
        teacher: of a block, forward, a token.
        teacher_last: of the last one.
        loss: an image, diagnostics left out.
    """

    student: float
    student_last: float
    teacher: float
    teacher_last: float
    loss: float

    def an_image(self, config: PretrainConfig) -> float:
        """Of all blocks and the loss."""
        inner = FVIT_SIZES[config.model.size].depth - 1
        seen = NUM_GLOBAL_VIEWS * (config.model.num_landmarks + 1)
        tokens = seen + config.views.num_local * (config.landmarks.local_tokens + 1)
        student, teacher = inner * self.student + self.student_last, inner * self.teacher + self.teacher_last
        return tokens * student + seen * teacher + self.loss


# Views in two batches of a block, a tenth of which stochastic depth drops. Their difference counts: what a batch moves
# whatever its size, such as weights that become bfloat16, is little in large ones.
_SAMPLES = 300, 600
# Images in a part of the loss of the base model.
_IMAGES = 32


def count_fused_bytes(config: PretrainConfig) -> FusedBytes:
    """Schedule and count."""

    def a_token(trains: bool, class_only: bool) -> float:
        few, many = (_size(block_kernels(config, n, trains=trains, class_only=class_only)) for n in _SAMPLES)
        return (many - few) / ((_SAMPLES[1] - _SAMPLES[0]) * (config.model.num_landmarks + 1))

    return FusedBytes(
        student=a_token(trains=True, class_only=False),
        student_last=a_token(trains=True, class_only=True),
        teacher=a_token(trains=False, class_only=False),
        teacher_last=a_token(trains=False, class_only=True),
        loss=_size(loss_kernels(config)) / _IMAGES,
    )


def block_kernels(config: PretrainConfig, views: int, *, trains: bool, class_only: bool) -> list[Kernel]:
    """Return the fused kernels of a block.

    Args:
        config: of the run.
        views: global views in its input.
        trains: the student's, forward and backward; else the teacher's, forward.
        class_only: whether it is the last block.
    """
    network = build_transformer(config)
    block, depth = network.transformer.layers[0].train(trains), network.transformer.depth
    x = torch.empty(views, config.model.num_landmarks + 1, FVIT_SIZES[config.model.size].width)
    paths = depth(x)[:2] if trains else (None, None)
    with gpu_form_everywhere():
        return fused_kernels(partial(_block_step, block, (*paths, class_only), x, trains))


def loss_kernels(config: PretrainConfig) -> list[Kernel]:
    """Return the fused kernels of a part of the loss."""
    views = NUM_GLOBAL_VIEWS + config.views.num_local
    scores = torch.empty(views, _IMAGES, config.head.num_prototypes, dtype=torch.bfloat16)
    targets = torch.empty(NUM_GLOBAL_VIEWS, _IMAGES, config.head.num_prototypes)

    def step() -> None:
        compiled = torch.compile(part_loss, dynamic=False)
        with torch.no_grad():
            compiled(scores, targets, torch.zeros(views, 1), torch.empty_like(scores), 0.1, 0.5)

    return fused_kernels(step)


def _size(kernels: list[Kernel]) -> int:
    return sum(kernel.size for kernel in kernels)


def _block_step(block: nn.Module, settings: tuple[Any, ...], x: Tensor, trains: bool) -> None:
    compiled: Callable[..., Tensor] = torch.compile(block, dynamic=False)
    leaf = x.requires_grad_(trains)
    with torch.set_grad_enabled(trains), torch.autocast("cpu", torch.bfloat16):
        out = compiled(leaf, *settings)
    if trains:
        torch.autograd.backward(out, torch.empty_like(out))


def _print_kernels(config: PretrainConfig) -> None:
    """Print what each kernel of an inner block of the student moves, with its names."""
    tokens = _SAMPLES[1] * (config.model.num_landmarks + 1)
    for kernel in block_kernels(config, _SAMPLES[1], trains=True, class_only=False):
        print(f"{kernel.read / tokens:7.0f} read, {kernel.written / tokens:7.0f} written: {', '.join(kernel.names)}")


def main() -> None:
    """Count for one size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="base")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--kernels", action="store_true", help="print bytes a token of a student's block by kernel")
    arguments = parser.parse_args()
    config = config_of(arguments.size, 256, arguments.prototypes)
    if arguments.kernels:
        _print_kernels(config)
        return
    found = count_fused_bytes(config)
    print(f"torch {torch.__version__}, {arguments.size}: bytes of fused kernels, bfloat16")
    print(f"student's block {found.student / 1e3:.1f} KB a token, the last {found.student_last / 1e3:.1f}")
    print(f"teacher's block {found.teacher / 1e3:.1f} KB a token, the last {found.teacher_last / 1e3:.1f}")
    print(f"loss {found.loss / 1e6:.1f} MB an image; all {found.an_image(config) / 1e6:.0f} MB an image")


if __name__ == "__main__":
    main()
