"""Global and local views in two passes of the transformer, as LAFS runs, or in one.

    python -m benchmarks.packed --size tiny --batch 8 --repeats 5

Forward and backward of the student's transformer over 2 views of 196 tokens and 8 of 36 an image,
without dropout, so that all ways can be compared number by number:

- two passes: one for each token count, as `LafsNetwork` does;
- padded: one pass, local views filled up to 196 tokens that a mask hides;
- packed: all tokens of all views in one row; linear layers and norms see one matrix, attention
  runs once for each token count;
- nested: torch's jagged nested tensors through every layer, attention included; on CUDA its
  kernel is FlashAttention's for sequences of any lengths.

The ways take turns; medians are printed, and ratios to the two passes.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_step import VIEWS
from benchmarks.views import cpu_name
from lafs_ray.models.fvit import FVIT_SIZES, FViT

# Sums in another order, of numbers of one size (embeddings are normalized), through the depth.
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1}

Way = Callable[[FViT, list[Tensor]], Tensor]


def two_passes(network: FViT, sets: list[Tensor]) -> Tensor:
    """What LAFS does."""
    return torch.cat([network(tokens) for tokens in sets])


def padded(network: FViT, sets: list[Tensor]) -> Tensor:
    """One pass over sets [R_i, n_i, P] that are filled up to the longest."""
    starts = [start(network, tokens) for tokens in sets]
    longest = max(x.shape[1] for x in starts)
    x = torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in starts])
    mask = torch.cat([torch.arange(longest, device=x.device).expand(len(part), -1) < part.shape[1] for part in starts])[
        :, None, None, :
    ]

    def mix(attention: Any, qkv: Tensor) -> Tensor:
        return attend(attention, qkv.chunk(3, dim=-1), mask)

    return network.mlp_head(blocks(network, x, mix)[:, 0])


def packed(network: FViT, sets: list[Tensor]) -> Tensor:
    """One row of tokens [ΣR_i·n_i, D] everywhere but in the attention."""
    starts = [start(network, tokens) for tokens in sets]
    shapes = [x.shape[:2] for x in starts]
    lengths = [rows * count for rows, count in shapes]

    def mix(attention: Any, qkv: Tensor) -> Tensor:
        parts = zip(qkv.split(lengths), shapes, strict=True)
        mixed = [attend(attention, part.view(*shape, -1).chunk(3, dim=-1)) for part, shape in parts]
        return torch.cat([each.flatten(0, 1) for each in mixed])

    x = blocks(network, torch.cat([x.flatten(0, 1) for x in starts]), mix)
    parts = zip(x.split(lengths), shapes, strict=True)
    return network.mlp_head(torch.cat([part.view(*shape, -1)[:, 0] for part, shape in parts]))


def nested(network: FViT, sets: list[Tensor]) -> Tensor:
    """A jagged nested tensor [ΣR_i, j, D] everywhere."""
    starts = [start(network, tokens) for tokens in sets]
    counts = torch.cat([torch.full((len(x),), x.shape[1], device=x.device, dtype=torch.int64) for x in starts])
    offsets = F.pad(counts.cumsum(0), (1, 0))
    values = torch.cat([x.flatten(0, 1) for x in starts])
    lengths = [x.shape[1] for x in starts]
    x = torch.nested.nested_tensor_from_jagged(values, offsets, min_seqlen=min(lengths), max_seqlen=max(lengths))

    def mix(attention: Any, qkv: Tensor) -> Tensor:
        # No kernel takes nested slices of a larger array.
        return attend(attention, [part.contiguous() for part in qkv.chunk(3, dim=-1)])

    x = blocks(network, x, mix)
    return network.mlp_head(x.values()[offsets[:-1]])


def start(network: FViT, tokens: Tensor) -> Tensor:
    """Tokens [R, n, P] as the first block gets them, [R, n + 1, D]."""
    x = network.patch_to_embedding(tokens)
    x = torch.cat((network.cls_token.expand(len(x), -1, -1).to(x), x), dim=1)
    return x + network.pos_embedding[:, : x.shape[1]]


def blocks(network: FViT, x: Tensor, mix: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """All blocks over tokens of any layout; `mix` makes of an attention's QKV what it sums."""
    layers: Any = network.transformer.layers
    for attention, mlp in layers:
        inner = attention.fn.fn
        x = x + inner.to_out(mix(inner, inner.to_qkv(attention.fn.norm(x))))
        x = x + mlp.fn(x)
    return x


def attend(attention: Any, parts: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Queries, keys and values [R, n, H·E] each, nested or not, to [R, n, H·E]."""
    heads = (attention.heads, attention.head_dim)
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=attention.scale)
    return mixed.transpose(1, 2).flatten(2)


WAYS: dict[str, Way] = {
    "two passes": two_passes,
    "padded, masked": padded,
    "packed rows": packed,
    "nested (jagged)": nested,
}


class Bench:
    """One network and one batch, which all ways share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.precision = getattr(torch, arguments.precision)
        self.clock = time.process_time if arguments.processor_time else time.perf_counter
        torch.manual_seed(0)
        size = FVIT_SIZES[arguments.size]
        self.network = FViT(size, dropout=0.0, drop_path=0.0).to(self.device)
        shapes = ((2, VIEWS.num_landmarks), (8, VIEWS.local_tokens))
        self.sets = [
            torch.rand(views * arguments.batch, count, 192, device=self.device) * 2 - 1 for views, count in shapes
        ]
        self.weights = torch.randn(10 * arguments.batch, size.width, device=self.device)

    def run(self, way: Way) -> tuple[float, float, list[Tensor]]:
        """Seconds of forward and of backward; embeddings and all gradients."""
        self.network.zero_grad(set_to_none=True)
        marks = [self._now()]
        enabled = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=enabled):
            embeddings = way(self.network, self.sets)
        marks.append(self._now())
        (embeddings.float() * self.weights).sum().backward()
        marks.append(self._now())
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        return marks[1] - marks[0], marks[2] - marks[1], [embeddings.detach(), *gradients]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def check(bench: Bench) -> dict[str, Way]:
    """The ways that run here, after a check that they compute the same."""
    expected = bench.run(two_passes)[2]
    sound = {"two passes": two_passes}
    for name, way in WAYS.items():
        try:
            found = bench.run(way)[2]
        except (RuntimeError, NotImplementedError, ValueError) as error:
            print(f"{name}: not with this torch on this device: {str(error).splitlines()[0]}")
            continue
        pairs = zip(found, expected, strict=True)
        furthest = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
        allowed = ALLOWED[bench.precision]
        print(f"{name}: furthest from two passes, of a tensor's largest {furthest:.1e} ({allowed})")
        # Written so that a NaN fails.
        if not furthest <= allowed:
            sys.exit(f"{name} computes something else than two passes")
        sound[name] = way
    print("equal")
    return sound


def report(bench: Bench, ways: dict[str, Way], batch: int, repeats: int) -> None:
    """Time the ways in turns and print."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(bench.run(way)[:2])
    print(f"\n{'ms an image':20}{'forward':>10}{'backward':>10}{'both':>10}{'of two passes':>15}")
    base = None
    for name, found in times.items():
        columns = [*zip(*found, strict=True), [sum(pair) for pair in found]]
        forward, backward, both = (statistics.median(c) * 1e3 / batch for c in columns)
        base = base or both
        print(f"{name:20}{forward:10.2f}{backward:10.2f}{both:10.2f}{both / base:13.2f} ×")


def main() -> None:
    """Check the ways and time them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time the processor, not the clock: for one thread on a CPU that others use",
    )
    arguments = parser.parse_args()
    if arguments.processor_time and (arguments.device != "cpu" or arguments.threads != 1):
        parser.error("--processor-time needs --device cpu and one thread")
    torch.set_num_threads(arguments.threads)
    cuda = arguments.device == "cuda"
    print(
        f"{date.today()}  torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.cuda.get_device_name() if cuda else cpu_name()}, {arguments.threads} thread of "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n{arguments.size}, batch "
        f"{arguments.batch}, {arguments.precision}, median of {arguments.repeats}"
        + ", ms of the processor"
        * arguments.processor_time
    )
    bench = Bench(arguments)
    report(bench, check(bench), arguments.batch, arguments.repeats)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
