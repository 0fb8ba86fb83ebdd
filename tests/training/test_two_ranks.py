"""What ranks agree on, tested on two gloo ranks that start once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lafs_ray.errors import DataError
from lafs_ray.training.checkpoint.sharded_state import broadcast_state
from lafs_ray.training.distributed import SharedFailure, gather_lines, reduce_gradients
from lafs_ray.training.input_pipeline import StepBatch
from lafs_ray.training.monitoring.metrics import Meter
from lafs_ray.training.monitoring.nonfinite_guard import NonFinite, NonFiniteGuard
from lafs_ray.training.train_loop import train
from tests.ranks import on_ranks
from tests.training.builds import built, pretrain
from tests.training.monitoring.test_metrics import GO, step
from tests.training.test_compile import trained
from tests.training.test_train_loop import batch, training

OTHER = "rank 1 failed: ZeroDivisionError: x / 0"


def metered(rank: int, num_ranks: int) -> list[Any]:
    """A report and the lines of this rank."""
    meter = Meter(images_per_step=8)
    for number in range(2):
        work_s = {"read_s": 0.004 * rank, "preprocess_s": 0.008}
        metrics = step(loss=float(10 * rank + number), accuracy=0.5 * rank)
        meter.add(metrics, 0.0, work_s, GO)
    return [meter.report(2), sorted(gather_lines({"seen by both", f"seen by {rank}"}))]


def guarded(rank: int, num_ranks: int) -> list[Any]:
    """Ten steps on this rank; rank 1's fourth has an infinite loss and a sound gradient."""
    run_, saved, reported = training(), [], []
    run_.guard = NonFiniteGuard(run_.task.trainable, run_.device, rank)
    plain = run_.task.loss

    def loss(*arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = plain(*arguments)
        is_bad = rank == 1 and ("begin_step", 3) in run_.task.calls  # type: ignore[attr-defined]
        return (value + math.inf, metrics) if is_bad else (value, metrics)

    run_.task.loss = loss  # type: ignore[method-assign]
    try:
        train(
            run_,
            (batch(step, 1.0) for step in range(10)),
            Meter(num_ranks),
            last_step=10,
            report=lambda line: reported.append(line["step"]),
            report_every=5,
            save=saved.append,
            save_every=10,
        )
    except NonFinite as found:
        evidence = [(each.rank, each.loss) for each in found.ranks]
        weight = run_.task.trainable.weight
        assert isinstance(weight, nn.Parameter)
        return [found.step, evidence, weight.item(), saved, reported]
    return ["went on"]


def recomputed(rank: int, num_ranks: int) -> list[Any]:
    """Losses and gradient norms under DDP, without and with activation checkpointing."""
    found = []
    for option in ("false", "true"):
        config = pretrain(f"compute.activation_checkpointing={option}")
        run_ = built(config)
        run_.rank = rank
        run_.network = DistributedDataParallel(run_.network)
        found.append(torch.stack(trained(run_, "pretrain")[0]))
    return found


def reduced(rank: int, num_ranks: int) -> list[Any]:
    """The gradient of each precision, whether it lies in a bucket, and the plain mean over the ranks."""
    found: list[Any] = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network = nn.Linear(64, 8, bias=False)
        wrapped = reduce_gradients(network, torch.device("cpu"), precision)  # type: ignore[arg-type]
        inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(rank))
        with wrapped.no_sync():
            wrapped(inputs).square().mean().backward()
        wrapped(2 * inputs).square().mean().backward()
        plain = nn.Linear(64, 8, bias=False)
        plain.load_state_dict(network.state_dict())
        plain(inputs).square().mean().backward()
        plain(2 * inputs).square().mean().backward()
        assert network.weight.grad is not None
        assert plain.weight.grad is not None
        dist.all_reduce(plain.weight.grad)
        found.append([network.weight.grad.clone(), network.weight.grad._is_view(), plain.weight.grad / num_ranks])
    return found


def nest() -> dict[str, Any]:
    """Of all kinds of tensors and values that a checkpoint has."""
    numbers = torch.arange(6, dtype=torch.float32)
    return {
        "model": {"a": numbers.reshape(2, 3).t(), "b": numbers.bfloat16(), "none": torch.empty(0, 4)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": numbers * 2}}, "param_groups": [{"lr": 0.1}]},
        "skipped": ["a line"],
        "mask": (torch.tensor([True, False]), torch.tensor([1, -1])),
        "step": 7,
        "nothing": None,
    }


def sent(rank: int, num_ranks: int) -> list[Any]:
    """What rank 0 alone has, on every rank."""
    return [broadcast_state(nest() if rank == 0 else None)]


def failing(rank: int, num_ranks: int) -> list[Any]:
    """What one rank alone meets: no batch for step 4, a mistake of the program, a report that cannot be written."""
    mistake = DataError("damaged records", found="3 so far", expected="at most 2", fix="repair them")
    found = []
    for failing_rank, error, at_check in (
        (1, mistake, False),
        (1, ZeroDivisionError("x / 0"), False),
        (0, mistake, True),
    ):
        run_, saved, reported = training(), [], []

        def batches(
            fails: bool = rank == failing_rank and not at_check, error: Exception = error
        ) -> Iterator[StepBatch]:
            for number in range(10):
                if fails and number == 4:
                    raise error
                yield batch(number, 1.0)

        def check(fails: bool = rank == failing_rank and at_check, run_: Any = run_, error: Exception = error) -> None:
            if fails and ("begin_step", 3) in run_.task.calls:
                raise error

        try:
            train(
                run_,
                batches(),
                Meter(num_ranks),
                last_step=10,
                report=lambda line, reported=reported: reported.append(line["step"]),
                report_every=10,
                save=saved.append,
                save_every=10,
                check=check,
            )
        except SharedFailure as failure:
            found.append([type(failure.error).__name__, str(failure), saved, reported, len(run_.task.calls)])
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What both functions return on each rank."""
    return on_ranks(
        tmp_path_factory.mktemp("ranks"),
        (2, metered, ()),
        (2, guarded, ()),
        (2, recomputed, ()),
        (2, failing, ()),
        (2, reduced, ()),
        (2, sent, ()),
    )


def test_meter__means_and_lines_of_both(results: list[list[Any]]) -> None:
    """Both ranks report the mean over ranks and know each other's lines."""
    for report, lines in results[0]:
        assert (report["loss"], report["accuracy"]) == ((0 + 1 + 10 + 11) / 4, 0.25)
        assert lines == ["seen by 0", "seen by 1", "seen by both"]
        assert report["images_per_s"] > 0
        # A rank has 4 images a step: 1 ms of reading for each on one rank, none on the other.
        assert report["read_ms"] == pytest.approx(0.5)
        assert report["preprocess_ms"] == pytest.approx(2.0)


def test_guard__ranks_stop_together(results: list[list[Any]]) -> None:
    """Both stop, save the state after three steps, and know whose loss it was."""
    for found_at, evidence, weight, saved, reported in results[1]:
        assert (found_at, saved, reported) == (3, [3], [3])
        assert [rank for rank, _ in evidence] == [0, 1]
        # The weight is 1 less the rates of three steps, gradient 1: 0.1 + 0.2 + 0.3; float32.
        assert weight == pytest.approx(0.4, abs=1e-6)
        assert [loss for _, loss in evidence] == [pytest.approx(0.4, abs=1e-6), math.inf]


def test_activation_checkpointing__under_ddp(results: list[list[Any]]) -> None:
    """Both ranks have the same losses and reduced gradients, bit by bit, computed once or twice."""
    for plain, recomputed in results[2]:
        assert torch.equal(plain, recomputed), (plain, recomputed)
    # Dropout, hence the loss, is each rank's own; gradients are those of both.
    first, second = (each[0] for each in results[2])
    assert not torch.equal(first[::2], second[::2])
    assert torch.equal(first[1::2], second[1::2])


def test_failure_of_one_rank__ends_both_after_saving(results: list[list[Any]]) -> None:
    """Both ranks report and save the four steps done, make no fifth one, and raise what one of them met."""
    for rank, (no_batch, mistake, unwritten) in enumerate(results[3]):
        for kind, text, saved, reported, calls in (no_batch, unwritten):
            assert (kind, saved, reported) == ("DataError", [4], [4])
            assert text.startswith("damaged records\n  found:    3 so far")
            assert calls == 4 * 4
        assert mistake[:3] == (["ZeroDivisionError", "x / 0", [4]] if rank else ["RuntimeError", OTHER, [4]])


def test_gradients__are_the_mean_of_both_ranks(results: list[list[Any]]) -> None:
    """In float32 as computed by hand, over two micro-batches; in bfloat16 within its rounding, and equal on both."""
    for (first, in_bucket, mean), (second, _, _) in zip(*results[4], strict=True):
        assert in_bucket
        assert torch.equal(first, second)
        # bfloat16 has 8 bits: each rank's part and their sum are rounded once.
        torch.testing.assert_close(first, mean, rtol=2**-7, atol=1e-3)
    exact, rounded = (first for first, _, _ in results[4][0])
    torch.testing.assert_close(exact, results[4][0][0][2])
    assert not torch.equal(exact, rounded)


def test_broadcast_state__all_ranks_have_what_the_first_has(results: list[list[Any]]) -> None:
    """Bit by bit, with shapes, types and order."""
    for (found,) in results[5]:
        # Of dicts, lists, tuples and tensors, with their types.
        torch.testing.assert_close(found["model"], nest()["model"], rtol=0, atol=0)
        torch.testing.assert_close(found["optimizer"]["state"][0], nest()["optimizer"]["state"][0], rtol=0, atol=0)
        torch.testing.assert_close(found["mask"], nest()["mask"], rtol=0, atol=0)
        plain = ("skipped", "step", "nothing")
        assert {name: found[name] for name in plain} == {name: nest()[name] for name in plain}
        assert found["optimizer"]["param_groups"] == [{"lr": 0.1}]
        assert list(found) == list(nest())
