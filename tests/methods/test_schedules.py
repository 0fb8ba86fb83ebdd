from __future__ import annotations

import dataclasses

import pytest

from lafs_ray.methods.optim import CosineSchedule, LinearEpochs, Staircase
from tests.golden_cases import load_case

CASE = load_case("d5_schedules")
# The case's own tolerance: both sides are float64, the order of the operations differs.
TOL = {"abs": CASE.meta["tol"]["atol"], "rel": CASE.meta["tol"]["rtol"]}


@pytest.mark.parametrize("index", range(len(CASE.meta["sched"])))
def test_cosine__released_code(index: int) -> None:
    """Every step of the reference's tables of learning rate, weight decay and momentum."""
    spec = CASE.meta["sched"][index]
    expected = CASE.outputs[f"sched_{index}"]
    schedule = CosineSchedule(
        base=spec["base_value"],
        final=spec["final_value"],
        total_steps=spec["epochs"] * spec["niter_per_ep"],
        warmup_steps=spec.get("warmup_epochs", 0) * spec["niter_per_ep"],
    )
    assert [schedule(step) for step in range(len(expected))] == pytest.approx(expected, **TOL)


@pytest.mark.parametrize("index", range(len(CASE.meta["temp"])))
def test_linear_epochs__released_code(index: int) -> None:
    """Every epoch of the reference's tables of the teacher's temperature."""
    spec = CASE.meta["temp"][index]
    expected = CASE.outputs[f"temp_{index}"]
    schedule = LinearEpochs(
        start=spec["warmup_teacher_temp"],
        end=spec["teacher_temp"],
        warmup_epochs=spec["warmup_epochs"],
        num_epochs=spec["nepochs"],
    )
    assert [schedule(epoch) for epoch in range(len(expected))] == pytest.approx(expected, **TOL)


@pytest.mark.parametrize(("case", "epochs"), [("d1_dino_head_loss", 3), ("d2_dino_head_loss_nonorm", 5)])
def test_linear_epochs__reaches_the_end_on_the_last_warm_up_epoch(case: str, epochs: int) -> None:
    """The temperatures under which cases d1 (falling) and d2 (rising) were recorded."""
    golden = load_case(case)
    schedule = LinearEpochs(
        golden.meta["warmup_teacher_temp"], golden.meta["teacher_temp"], epochs, golden.meta["nepochs"]
    )
    expected = golden.outputs["teacher_temp_schedule"]
    assert [schedule(epoch) for epoch in range(len(expected))] == pytest.approx(expected, **TOL)


def test_cosine__ends_of_the_warm_up() -> None:
    """The warm-up starts at `start`, reaches `base` on its last step and repeats it once."""
    schedule = CosineSchedule(base=2.0, final=0.0, total_steps=9, warmup_steps=3, start=1.0)
    assert [schedule(step) for step in range(4)] == [1.0, 1.5, 2.0, 2.0]
    assert 0.0 < schedule(8) < schedule(7)


def test_cosine__constant_when_base_is_final() -> None:
    """Equal ends give a constant, which is how a schedule is switched off."""
    schedule = CosineSchedule(base=0.3, final=0.3, total_steps=5)
    assert {schedule(step) for step in range(5)} == {0.3}


def test_cosine__warm_up_of_the_whole_run() -> None:
    """A run may be all warm-up: the cosine has no step."""
    schedule = CosineSchedule(base=1.0, final=0.0, total_steps=3, warmup_steps=3)
    assert [schedule(step) for step in range(3)] == [0.0, 0.5, 1.0]


def test_linear_epochs__one_warm_up_epoch_is_spent_at_the_start() -> None:
    """As numpy's linspace of one value, which is what the reference asks for."""
    schedule = LinearEpochs(start=0.04, end=0.07, warmup_epochs=1, num_epochs=2)
    assert [schedule(0), schedule(1)] == [0.04, 0.07]


def test_staircase__values_up_to_each_end() -> None:
    """A stair holds up to its end, which belongs to the next; after the last there is 0."""
    schedule = Staircase(((2, 5.0), (3, 1.0)))
    assert [schedule(step) for step in range(5)] == [5.0, 5.0, 1.0, 0.0, 0.0]
    assert Staircase(())(0) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearEpochs(0.07, 0.04, 30, 10), "30 warm-up epochs do not fit a run of 10"),
        (lambda: CosineSchedule(1.0, 0.0, 10, 11), "11 steps does not fit a run of 10"),
        (lambda: CosineSchedule(1.0, 0.0, 0), "a run of 0 steps"),
        (lambda: CosineSchedule(1.0, 0.0, 10)(10), "step 10 of a run of 10"),
        (lambda: CosineSchedule(1.0, 0.0, 10)(-1), "step -1 of a run of 10"),
        (lambda: LinearEpochs(0.07, 0.04, 3, 10)(10), "epoch 10 of a run of 10"),
    ],
)
def test_schedules__impossible(make: object, message: str) -> None:
    """What cannot be a schedule, or a step of one, stops at once and names its numbers."""
    assert callable(make)
    with pytest.raises(AssertionError, match=message):
        make()


def test_schedules__are_values() -> None:
    """A schedule is frozen and equal to another of the same numbers."""
    schedule = CosineSchedule(1.0, 0.0, 10)
    assert schedule == CosineSchedule(1.0, 0.0, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base = 2.0  # type: ignore[misc]
