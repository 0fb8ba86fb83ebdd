"""A run warns of a precision that its processor lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lafs_ray.training import compile as compile_module
from lafs_ray.training.compile import slow_arithmetic
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.runner import run_local
from tests.training.faces import logged, tiny

CPU = torch.device("cpu")


def seconds(monkeypatch: pytest.MonkeyPatch, bfloat16: float) -> None:
    """Let products take so long, and 1 ms in float32."""
    taken = {torch.bfloat16: bfloat16, torch.float32: 0.001}
    monkeypatch.setattr(compile_module, "_product_s", taken.__getitem__)


def test_slow_arithmetic__of_a_processor_that_imitates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the key, what was measured and the way out."""
    seconds(monkeypatch, 0.25)
    line = slow_arithmetic(torch.bfloat16, CPU)
    assert "compute.precision is bfloat16" in line
    assert "250 times as long" in line
    assert line.endswith("set compute.precision=float32")


@pytest.mark.parametrize(
    ("found_s", "requested", "device"),
    [
        (0.0005, torch.bfloat16, "cpu"),
        (0.002, torch.bfloat16, "cpu"),
        (0.25, torch.float32, "cpu"),
        (0.25, torch.bfloat16, "cuda"),
    ],
    ids=["faster", "imitated well", "float32", "gpu"],
)
def test_slow_arithmetic__nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, found_s: float, requested: torch.dtype, device: str
) -> None:
    """Where it is fast enough, not requested, or not the CPU's."""
    seconds(monkeypatch, found_s)
    assert slow_arithmetic(requested, torch.device(device)) == ""


def test_product_s__is_measured() -> None:
    """In both kinds of arithmetic a product takes some time, and not a second."""
    for kind in (torch.bfloat16, torch.float32):
        assert 0 < compile_module._product_s(kind) < 1


def test_run__warns_once(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning is a line of the run, before its steps."""
    seconds(monkeypatch, 0.25)
    settings = ("duration=1 steps", "optim.warmup=0 steps", "compute.precision=bfloat16")
    with logged() as lines:
        run_local(prepare_run(tiny(tmp_path, face_set_path, *settings)))
    assert [line for line in lines if "compute.precision" in line] == lines[:1]
