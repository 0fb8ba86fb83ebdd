"""Count the bytes that a compiled block moves an image, matrix products and attention left out.

    python -m benchmarks.fused_bytes --size base

Inductor compiles a block of the student (with dropout and stochastic depth) and of the teacher for the CPU, in the form
for GPUs and in bfloat16; what it counts for each fused kernel is added up. For a GPU it fuses much the same, but not
all: the figure is an estimate. The loss is counted likewise.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._inductor import compile_fx, metrics
from torch._inductor import config as inductor_config

from benchmarks.fake_step import config_of
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.methods.chunked_loss import part_loss
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.training.tasks.networks import build_transformer

# A product or attention is no fused kernel.
_EXTERN = {"ExternKernelSchedulerNode"}


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


def count_fused_bytes(
    config: PretrainConfig, samples: tuple[int, int] = (10, 20), images: int = 2, prototypes: int = 4096
) -> FusedBytes:
    """Compile and count.

    Args:
        config: of the run.
        samples: views in two batches of a block, a tenth of which stochastic depth drops. Their difference counts:
            what a batch moves whatever its size, such as weights that become bfloat16, is little in large ones.
        images: in a part of the loss.
        prototypes: of that loss, whose bytes grow in proportion.
    """
    network = build_transformer(config)
    block, depth = network.transformer.layers[0], network.transformer.depth
    shape = config.model.num_landmarks + 1, FVIT_SIZES[config.model.size].width

    def a_token(trains: bool, class_only: bool) -> float:
        block.train(trains)
        found = []
        for number in samples:
            x = torch.randn(number, *shape)
            paths = depth(x) if trains else [None, None]
            found.append(_fused(partial(_block_step, block, (*paths[:2], class_only), x, trains)))
        return (found[1] - found[0]) / ((samples[1] - samples[0]) * shape[0])

    with gpu_form_everywhere(), inductor_config.patch(force_disable_caches=True, compile_threads=1):
        blocks = [a_token(trains, class_only) for trains in (True, False) for class_only in (False, True)]
        loss = _fused(partial(_loss_step, config, images, prototypes))
    return FusedBytes(*blocks, loss / images * config.head.num_prototypes / prototypes)


def _fused(step: Callable[[], None]) -> float:
    """Compile what a step calls, and return the bytes of its fused kernels."""
    metrics.reset()
    torch._dynamo.reset()
    # Inductor counts bytes only for a log.
    log = logging.Logger("counts", logging.INFO)
    log.addHandler(logging.NullHandler())
    with mock.patch.object(compile_fx, "inductor_metrics_log", log):
        step()
    # Inductor notes a node's bytes in numbers of four.
    extern = sum(4 * size for node, size in metrics.nodes_num_elem if type(node).__name__ in _EXTERN)
    return float(metrics.num_bytes_accessed - extern)


def _block_step(block: nn.Module, settings: tuple[Any, ...], x: Tensor, trains: bool) -> None:
    compiled = torch.compile(block, dynamic=False)
    leaf = x.clone().requires_grad_(trains)
    with torch.set_grad_enabled(trains), torch.autocast("cpu", torch.bfloat16):
        out = compiled(leaf, *settings)
    if trains:
        out.float().sum().backward()


def _loss_step(config: PretrainConfig, images: int, prototypes: int) -> None:
    views = NUM_GLOBAL_VIEWS + config.views.num_local
    scores = torch.randn(views, images, prototypes, dtype=torch.bfloat16)
    targets = torch.rand(NUM_GLOBAL_VIEWS, images, prototypes)
    compiled = torch.compile(part_loss, dynamic=False)
    with torch.no_grad():
        compiled(scores, targets, torch.zeros(views, 1), torch.empty_like(scores), 0.1, 0.5)


def main() -> None:
    """Count for one size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="base")
    parser.add_argument("--prototypes", type=int, default=65536)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = config_of(arguments.size, 256, arguments.prototypes)
    found = count_fused_bytes(config)
    print(f"torch {torch.__version__}, {arguments.size}: bytes of fused kernels, bfloat16")
    print(f"student's block {found.student / 1e3:.1f} KB a token, the last {found.student_last / 1e3:.1f}")
    print(f"teacher's block {found.teacher / 1e3:.1f} KB a token, the last {found.teacher_last / 1e3:.1f}")
    print(f"loss {found.loss / 1e6:.1f} MB an image; all {found.an_image(config) / 1e6:.0f} MB an image")


if __name__ == "__main__":
    main()
