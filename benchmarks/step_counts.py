"""Count what a pretraining step does on a GPU, without one: operators, bytes, saved activations, memory of the loss.

    python -m benchmarks.step_counts --size base --batch 256

`training.train_step.train_step` of a run with default settings, over tensors without data (FakeTensorMode) and in the
form for GPUs (`models.placement`). Counted is what the eager step dispatches: every operator that is no view, and the
bytes of its arguments and results. A list operator whose fast path on a GPU does not apply is counted as well.
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_step import build, config_of, random_batch, without_data
from benchmarks.list_launches import slow_launches
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.methods.chunked_loss import part_loss
from lafs_ray.methods.lafs import Lafs
from lafs_ray.methods.optim import clip_each_
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.train_step import TrainState, train_step

INPUT, TEACHER, STUDENT, LOSS, LOSS_BACKWARD, BACKWARD = (
    "input",
    "teacher forward",
    "student forward",
    "loss",
    "loss backward",
    "backward",
)
LOSS_PARTS = "loss, parts"
CLIP, GUARD, ADAMW, EMA = "clip", "guard", "AdamW", "EMA, center"
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
# No work of a GPU: bookkeeping of the dispatcher, and memory that is not written.
NO_KERNEL = {
    "alias",
    "detach",
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "promote_types",
    "_record_function_enter_new",
    "_record_function_exit",
    "_reshape_alias",
    "_unsafe_view",
}


@dataclass(frozen=True)
class StepCounts:
    """What one step does.

    Args:
        batch: images.
        ops: dispatched operators, by stage and name.
        bytes: read and written by them, by stage and name.
        flops: of matrix products and of attention, by stage and name; a multiply-add is two.
        saved: bytes that the forward pass keeps for the backward pass, weights left out.
        loss_peak: most bytes at once of the scores, their gradient and all that the loss makes.
        scalar_reads: values that the host waited for.
        slow_lists: launches of list operators whose fast path does not apply, by stage and name.
    """

    batch: int
    ops: Counter[tuple[str, str]]
    bytes: Counter[tuple[str, str]]
    flops: Counter[tuple[str, str]]
    saved: int
    loss_peak: int
    scalar_reads: int
    slow_lists: Counter[tuple[str, str]]

    @property
    def total_ops(self) -> int:
        """Dispatched operators of the step."""
        return sum(self.ops.values())

    def elementwise_bytes(self, *stages: str) -> int:
        """Bytes of all operators but matrix products and attention, of some stages or of all."""
        return sum(
            size
            for (stage, name), size in self.bytes.items()
            if (not stages or stage in stages) and name not in PRODUCTS and "attention" not in name
        )

    def product_flops(self) -> int:
        """FLOP of all matrix products outside attention."""
        return sum(count for (_, name), count in self.flops.items() if name in PRODUCTS)

    def attention_flops(self) -> int:
        """FLOP of attention."""
        return sum(self.flops.values()) - self.product_flops()

    def attention_bytes(self) -> int:
        """Bytes that attention reads and writes."""
        return sum(size for (_, name), size in self.bytes.items() if "attention" in name)


class _Counter(TorchDispatchMode):
    """Counts operators, and the bytes alive of tensors made since `watch`."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = INPUT
        self.ops: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.flops: Counter[tuple[str, str]] = Counter()
        self.slow_lists: Counter[tuple[str, str]] = Counter()
        self.scalar_reads = self.alive = self.peak = 0
        self._watching = False
        self._known: set[int] = set()

    def watch(self, *made: Tensor) -> None:
        """Begin to add up what is alive, with tensors that exist already."""
        self._watching = True
        for tensor in made:
            self._add(tensor)

    def end(self) -> None:
        """Let `peak` be what it is."""
        self._watching = False

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.scalar_reads += name in ("_local_scalar_dense", "nonzero", "is_nonzero")
        # Under a mode autograd copies each gradient of a parameter that it would take over otherwise.
        is_taken = self.stage == BACKWARD and name == "copy_"
        if func.is_view or name in NO_KERNEL or is_taken:
            return found
        made = list(tensors_in(found))
        if self._watching:
            for tensor in made:
                self._add(tensor)
        self.ops[self.stage, name] += 1
        if launches := slow_launches(name, args):
            self.slow_lists[self.stage, name] += launches
        # What is given to be written to is what is returned.
        given = [value for key, value in (kwargs or {}).items() if key != "out"]
        touched = [*tensors_in(args), *tensors_in(given), *made]
        self.bytes[self.stage, name] += sum(each.numel() * each.element_size() for each in touched)
        if flops := _flops(name, args):
            self.flops[self.stage, name] += flops
        return found


def _flops(name: str, args: Sequence[Any]) -> int:
    """FLOP of a matrix product, or of attention, whose backward pass makes five products for the forward pass's two."""
    if name in PRODUCTS:
        one, other = args[-2:] if name in ("mm", "bmm") else args[1:3]
        return int(2 * one.numel() * other.shape[-1])
    if "attention" in name:
        query, key = args[1:3] if "backward" in name else args[:2]
        return int((10 if "backward" in name else 4) * query.numel() * key.shape[-2])
    return 0


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Find the tensors in nested lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def count_step(config: PretrainConfig, *, reports: bool = False) -> StepCounts:
    """Count the second step of a run: the first also makes the optimizer's state.

    Args:
        config: of the run.
        reports: whether the step is one of those (one in 50 by default) that compute diagnostics as well.
    """
    with without_data():
        training = build(config)
        batch = random_batch(config, 0)
        saved = _saved_bytes(training, batch)
        train_step(training, batch, training.hparams(0))
        with _Counter() as counter, _stages(training, counter):
            train_step(training, batch, training.hparams(0), reports=reports)
    return StepCounts(
        config.batch_size,
        counter.ops,
        counter.bytes,
        counter.flops,
        saved,
        counter.peak,
        counter.scalar_reads,
        counter.slow_lists,
    )


@contextlib.contextmanager
def _stages(training: TrainState, counter: _Counter) -> Iterator[None]:
    """Tell the counter which stage begins, and watch the memory of the loss."""
    task, optimizer = training.task, training.optimizer
    assert isinstance(task, Lafs)
    scores: list[Tensor] = []

    def enter(stage: str) -> Any:
        return lambda *_: setattr(counter, "stage", stage)

    def student_done(_module: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        found, _ = outputs
        counter.stage = LOSS
        counter.watch(found, *scores)
        scores.clear()
        found.register_hook(loss_done)

    def loss_done(gradient: Tensor) -> None:
        del gradient
        counter.stage = BACKWARD
        counter.end()

    def loss(*arguments: Any) -> Any:
        counter.stage = TEACHER
        found = Lafs.loss(task, *arguments)
        counter.stage = LOSS_BACKWARD
        return found

    def part(*arguments: Any) -> Any:
        counter.stage = LOSS_PARTS
        found = part_loss(*arguments)
        counter.stage = LOSS
        return found

    def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        counter.stage = CLIP
        norms = clip_each_(parameters, max_norm)
        counter.stage = GUARD
        return norms

    handles = [
        task.teacher.head.register_forward_hook(lambda *given: scores.append(given[-1])),
        task.trainable.register_forward_pre_hook(enter(STUDENT)),
        task.trainable.register_forward_hook(student_done),
        optimizer.register_step_pre_hook(enter(ADAMW)),
        optimizer.register_step_post_hook(enter(EMA)),
    ]
    patches = mock.patch.object(task, "loss", loss), mock.patch.object(task, "loss_part", part)
    with patches[0], patches[1], mock.patch("lafs_ray.training.train_step.clip_each_", clip):
        yield
    for handle in handles:
        handle.remove()


def _saved_bytes(training: TrainState, batch: StepBatch) -> int:
    """Bytes of what autograd keeps of one forward pass, parameters left out; each storage once."""
    weights = {each.untyped_storage()._cdata for each in training.task.trainable.parameters()}
    # Storages are kept alive, so that none takes the number of another.
    found: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage
        return tensor

    inputs = {name: torch.from_numpy(column) for name, column in batch.columns.items()}
    autocast = torch.autocast("cpu", training.precision, enabled=training.precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        training.task.loss(training.network, inputs, training.hparams(0))
    task = training.task
    assert isinstance(task, Lafs)
    task.center.pending.zero_()
    task.center.pending_rows = 0
    return sum(storage.nbytes() for storage in found.values())


def report(counts: StepCounts) -> None:
    """Print the counts of each stage and the sums."""
    batch = counts.batch
    print(f"{'':18}{'operators':>10}{'elementwise MB an image':>25}")
    for stage in (INPUT, TEACHER, STUDENT, LOSS, LOSS_PARTS, LOSS_BACKWARD, BACKWARD, CLIP, GUARD, ADAMW, EMA):
        ops = sum(count for (of, _), count in counts.ops.items() if of == stage)
        print(f"{stage:18}{ops:10}{counts.elementwise_bytes(stage) / batch / 1e6:25.1f}")
    print(f"{'step':18}{counts.total_ops:10}{counts.elementwise_bytes() / batch / 1e6:25.1f}")
    products, attention = (flops / batch / 1e9 for flops in (counts.product_flops(), counts.attention_flops()))
    print(f"matrix products {products:.1f} GFLOP an image, attention {attention:.1f}")
    print(f"saved activations {counts.saved / batch / 1e6:.1f} MB an image, {counts.saved / 1e9:.1f} GB")
    print(f"peak of the loss {counts.loss_peak / 1e9:.2f} GB; scalar reads {counts.scalar_reads}", end="; ")
    print(f"launches of slow list operators {sum(counts.slow_lists.values())} {dict(counts.slow_lists) or ''}")


def main() -> None:
    """Count the step of a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(FVIT_SIZES), default="base")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--reports", action="store_true", help="count a step that a report follows")
    parser.add_argument("--names", action="store_true", help="print operators by name as well")
    arguments = parser.parse_args()
    checkpointing = arguments.activation_checkpointing
    config = config_of(arguments.size, arguments.batch, arguments.prototypes, activation_checkpointing=checkpointing)
    counts = count_step(config, reports=arguments.reports)
    print(f"torch {torch.__version__}, {arguments.size}, batch {arguments.batch}, K {arguments.prototypes}, bfloat16")
    report(counts)
    if arguments.names:
        for (stage, name), count in sorted(counts.ops.items(), key=lambda item: (item[0][0], -item[1])):
            print(f"{stage:18}{name:55}{count:5}{counts.bytes[stage, name] / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
