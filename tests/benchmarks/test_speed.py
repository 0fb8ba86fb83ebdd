"""Benchmarks of speed as a user types them, as small as they go: that they run, not how fast."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.commands import output


def test_views__runs_to_the_end() -> None:
    """The benchmark of the views times all four sources of landmarks and prints its ratios."""
    printed = output("views", "--images", "16", "--repeats", "1")
    for source in ("per_view", "per_image", "cached", "grid"):
        assert re.search(rf"^ +\d+\.\d × the time of {source}$", printed, re.MULTILINE), printed


def test_step__equal_to_the_plain_step_and_ratio_printed() -> None:
    """The training step computes what the plain step does, and both are timed side by side."""
    size = ("--batch", "2", "--repeats", "1", "--prototypes", "256", "--device", "cpu")
    printed = output("step", *size, "--processor-time")
    assert "\nequal\n" in printed
    memory = re.search(r"^peak memory .* (\d+) MiB, plain (\d+): ratio", printed, re.MULTILINE)
    assert memory is not None, printed
    # Two images' activations and 5 M parameters' gradients and moments, in float32.
    assert all(40 < int(found) < 600 for found in memory.groups()), printed
    shares = re.findall(r" (\d+)%", printed)
    assert len(shares) == 8, printed
    assert re.search(r"^step, from tokens: .* images/s, .*: ratio \d+\.\d\d$", printed, re.MULTILINE)


def test_packed__equal_ways_and_ratios_printed() -> None:
    """Ways through the transformer that run here compute the same, with a ratio for each."""
    printed = output("packed", "--batch", "1", "--repeats", "1", "--processor-time")
    assert "\nequal\n" in printed
    for way in ("two passes", "padded, masked", "packed rows"):
        assert re.search(rf"^{way}( +\d+\.\d\d){{4}} ×$", printed, re.MULTILINE), printed


@pytest.mark.ray
@pytest.mark.long
def test_ray_cost__equal_losses_and_ratios_printed() -> None:
    """Through Ray and without it a run has the same losses, and every way's times are printed."""
    size = ("--steps", "4", "--batch", "2", "--prototypes", "64")
    printed = output("ray_cost", *size, limit_s=280)
    assert "\nequal losses in all runs\n" in printed
    for way in ("bare", "debug", "Ray"):
        row = rf"^{way} +[\d.]+ +[\d.]+ × +[\d.]+ +[\d.]+ × +[\d.]+% +[\d.]+ +[\d.]+$"
        assert re.search(row, printed, re.MULTILINE), printed


@pytest.mark.ray
@pytest.mark.long
def test_ray_cost__with_a_step_that_sleeps() -> None:
    """Both ways make all steps, through three executions of Ray Data; the bare loop's take as long as they sleep."""
    size = ("--step-sleep", "0.05", "--steps", "20", "--batch", "8", "--blocks-per-execution", "1")
    printed = output("ray_cost", *size, limit_s=400)
    for way in ("bare", "Ray"):
        row = re.search(rf"^{way} +([\d.]+) +([\d.]+) ×( +[\d.]+){{3}}$", printed, re.MULTILINE)
        assert row is not None, printed
        # Ten steps are timed.
        assert float(row[1]) > 10 * 0.05


def test_start_up__a_row_for_each_command() -> None:
    """Each command's time and its ratio to a Python that does nothing; help takes less than torch does."""
    printed = output("start_up", "--repeats", "1")
    rows = dict(re.findall(r"^\| `(.*)` \| .* \| ([\d.]+) \|$", printed, re.MULTILINE))
    assert rows["python -c pass"] == "1.0"
    assert float(rows["lafs --help"]) < float(rows["lafs --version"])
    assert len(rows) == 6


@pytest.mark.ray
@pytest.mark.long
def test_ray_start__a_line_for_each_kind_of_process() -> None:
    """Two workers, and two processes that preprocess for them, start once each, and a run has a first step."""
    printed = output("ray_start", "--steps", "2", limit_s=280)
    for kind in ("RayTrainWorker", "MapWorker"):
        assert re.search(rf"^{kind} +2( +[\d.]+){{4}} +2$", printed, re.MULTILINE), printed
    assert re.search(r"^medians of 1: first step [\d.]+ s, [\d.]+ CPU-s$", printed, re.MULTILINE), printed


def test_partial_fc__same_loss_and_ratios_printed() -> None:
    """Partial FC on one and two processes has the dense head's loss, and a line for each side."""
    printed = output("partial_fc", "--classes", "3000", "--width", "16", "--repeats", "1")
    assert "First losses at r = 1 equal the dense one" in printed
    for side in ("dense", "Partial FC, r = 0.1", "Partial FC, r = 1, each of 2"):
        assert re.search(rf"^{side} +\d+ +\d+\.\d\d +\d+ +\d+ +\d+\.\d\d$", printed, re.M), printed


def test_checkpoints__steps_wait_for_the_copy_alone() -> None:
    """A slow storage stretches the step that waits for it, and far less the one that does not."""
    # 3 s for the only checkpoint: a second one would wait for what is left of the first, and that depends on how fast
    # the machine makes the steps between them.
    size = ("--steps", "20", "--every", "20", "--repeats", "1", "--batch", "2")
    rate = ("--mb-per-s", "2.5", "--prototypes", "512")
    printed = output("checkpoints", *size, *rate)
    maxima = re.findall(r"^(in|beside) the step .* (\d+) \(.*$", printed, re.MULTILINE)
    longest = {name: float(milliseconds) for name, milliseconds in maxima}
    assert longest["in"] > 2900, printed
    assert longest["beside"] < longest["in"] / 2, printed
