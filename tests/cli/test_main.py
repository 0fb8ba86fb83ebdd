"""Exit codes and messages of jobs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest

from lafs_ray.cli.main import run
from lafs_ray.errors import DataError, UserError, find_user_error

USER_ERROR = DataError("train.rec", found="3 bytes", expected="a record", fix="copy it again")


def raising(error: BaseException):
    def main(arguments: Sequence[str]) -> None:
        raise error

    return main


def test_run__returns_2_and_prints_the_four_parts_of_a_user_error(capsys):
    assert run(raising(USER_ERROR)) == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("train.rec", "3 bytes", "a record", "copy it again"))
    assert "Traceback" not in printed


def test_run__returns_0_for_success_and_130_for_ctrl_c(capsys):
    assert run(lambda arguments: None) == 0
    assert run(raising(KeyboardInterrupt())) == 130
    assert "continues" in capsys.readouterr().err


def test_run__keeps_the_traceback_of_a_bug():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_find_user_error__sees_through_the_layers_of_ray():
    class TaskError(Exception):
        cause: Exception | None = None

    class GroupError(Exception):
        worker_failures: dict[int, Exception] = {}  # noqa: RUF012 - as in Ray

    task, group, outer = TaskError(), GroupError(), RuntimeError()
    task.cause = USER_ERROR
    group.worker_failures = {0: ValueError(), 1: task}
    outer.__cause__ = group
    assert find_user_error(outer) is USER_ERROR
    assert find_user_error(ValueError()) is None


def test_user_error__survives_the_way_between_processes():
    copy = pickle.loads(pickle.dumps(USER_ERROR))
    assert isinstance(copy, UserError)
    assert (type(copy), str(copy)) == (DataError, str(USER_ERROR))
