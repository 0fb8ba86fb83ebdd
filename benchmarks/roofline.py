"""Estimate a GPU's images/s from what a step is counted to do, with the assumptions it prints. No measurement.

    python -m benchmarks.roofline                 # a minute or two: Inductor compiles four blocks
    python -m benchmarks.roofline --fused 102.5 25.8 28.2 10.9 7.6

A step is taken as matrix products, attention and elementwise kernels one after the other, each at a rate that such
kernels reach, or as the time in which the host dispatches the operators of an eager step, whichever is longer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from unittest import mock

from benchmarks.fake_step import config_of
from benchmarks.fused_bytes import FusedBytes, count_fused_bytes
from benchmarks.step_counts import ADAMW, CLIP, EMA, GUARD, LOSS_PARTS, StepCounts, count_step
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.models.fvit import FVIT_SIZES

# FLOP an image of the reference's step of the base model, by which its utilization is stated.
NOMINAL_FLOPS = 328e9


@dataclass(frozen=True)
class Device:
    """Rates of a GPU.

    Args:
        name: its name.
        peak: measured peak of large products in bfloat16, FLOP/s.
        products: of the step's products, FLOP/s.
        attention: of fused attention over 37 and 197 tokens, FLOP/s.
        bandwidth: of elementwise kernels, bytes/s.
        dispatch_s: of the host, for an eager operator.
    """

    name: str
    peak: float
    products: float
    attention: float
    bandwidth: float
    dispatch_s: float


H200 = Device("H200", peak=790e12, products=590e12, attention=150e12, bandwidth=3.6e12, dispatch_s=6e-6)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step.

    Args:
        products: of matrix products.
        attention: of attention.
        elementwise: of all other kernels.
        dispatch: of the host; 0 where it is not estimated.
        batch: images of the step.
    """

    products: float
    attention: float
    elementwise: float
    dispatch: float
    batch: int

    @property
    def images_per_s(self) -> float:
        """Images in a second."""
        return self.batch / max(self.products + self.attention + self.elementwise, self.dispatch)


def estimate(device: Device, counts: StepCounts, elementwise_bytes: float, *, eager: bool) -> Estimate:
    """Estimate one step.

    Args:
        device: its rates.
        counts: of the step.
        elementwise_bytes: of the step, outside products and attention.
        eager: whether the host dispatches every operator.
    """
    return Estimate(
        counts.product_flops() / device.products,
        counts.attention_flops() / device.attention,
        elementwise_bytes / device.bandwidth,
        counts.total_ops * device.dispatch_s if eager else 0.0,
        counts.batch,
    )


def compiled_bytes(config: PretrainConfig, fused: FusedBytes) -> float:
    """Elementwise bytes of a step whose blocks and loss are compiled: theirs, and what is outside as in the eager step.

    Args:
        config: of the run.
        fused: of blocks and loss.
    """
    whole = count_step(config)
    with mock.patch.dict(FVIT_SIZES, {config.model.size: replace(FVIT_SIZES[config.model.size], depth=0)}):
        outside = count_step(config)
    update = (CLIP, GUARD, ADAMW, EMA)
    kept = outside.elementwise_bytes() - outside.elementwise_bytes(*update, LOSS_PARTS)
    kept += whole.elementwise_bytes(*update)
    return kept + config.batch_size * fused.an_image(config)


def main() -> None:
    """Print the table of a size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="base")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument(
        "--fused",
        nargs=5,
        type=float,
        metavar=("STUDENT_KB", "LAST_KB", "TEACHER_KB", "TEACHER_LAST_KB", "LOSS_MB"),
        help="what benchmarks.fused_bytes printed; without it Inductor compiles",
    )
    arguments = parser.parse_args()
    config = config_of(arguments.size, 256, arguments.prototypes)
    if arguments.fused is None:
        fused = count_fused_bytes(config)
    else:
        *blocks, loss = arguments.fused
        fused = FusedBytes(*(kilobytes * 1e3 for kilobytes in blocks), loss * 1e6)
    device = H200
    print(f"{device.name}, {arguments.size}, K {arguments.prototypes}, bfloat16. Assumed, not measured:")
    print(f"  products at {device.products / 1e12:.0f} of {device.peak / 1e12:.0f} TFLOP/s", end=", ")
    print(f"attention at {device.attention / 1e12:.0f}, elementwise at {device.bandwidth / 1e12:.1f} TB/s", end=", ")
    print(f"{device.dispatch_s * 1e6:.0f} µs of the host an eager operator")
    print(f"  utilization: of the {device.peak / 1e12:.0f}, at {NOMINAL_FLOPS / 1e9:.0f} GFLOP an image")
    titles = ("products", "attention", "elementwise", "dispatch")
    print(f"{'step, images':26}" + "".join(f"{title + ', ms':>17}" for title in titles) + "   images/s   utilization")
    for batch in (16, 64, 256):
        sized = config_of(arguments.size, batch, arguments.prototypes)
        counts = count_step(sized)
        rows = {
            "eager": estimate(device, counts, counts.elementwise_bytes(), eager=True),
            "compiled": estimate(device, counts, compiled_bytes(sized, fused), eager=False),
        }
        for way, row in rows.items():
            times = (row.products, row.attention, row.elementwise, row.dispatch)
            share = row.images_per_s * NOMINAL_FLOPS / device.peak
            print(
                f"{f'{way}, {batch}':26}"
                + "".join(f"{seconds * 1e3:17.2f}" for seconds in times)
                + f"{row.images_per_s:11.0f}{share:14.1%}"
            )


if __name__ == "__main__":
    main()
