"""Errors that a user can fix: what is wrong, what was found, what was expected, what to do.

Bugs are `assert` or plain exceptions and keep their traceback; `lafs_ray.cli.main.run` prints a `UserError` without one
and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterator

from lafs_ray.messages import printable


class UserError(Exception):
    """An error in the user's input, in four parts.

    Args:
        subject: the file, record or configuration key, as precisely as known.
        found: the value there.
        expected: a valid value.
        fix: what the user can do.
    """

    def __init__(self, subject: str, *, found: str, expected: str, fix: str) -> None:
        super().__init__(subject, found, expected, fix)
        self.subject, self.found, self.expected, self.fix = subject, found, expected, fix

    def __str__(self) -> str:
        # A line break in a file's name must not begin a line of ours.
        subject = self.subject.replace("\n", "\\n")
        return printable(f"{subject}\n  found:    {self.found}\n  expected: {self.expected}\n  to do:    {self.fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions; the default does not keep keyword-only arguments.
        return _rebuild, (type(self), self.subject, self.found, self.expected, self.fix)


def _rebuild(kind: type[UserError], subject: str, found: str, expected: str, fix: str) -> UserError:
    return kind(subject, found=found, expected=expected, fix=fix)


class DataError(UserError):
    """A file, an index or a record is missing or invalid."""


class ConfigError(UserError):
    """A configuration key is unknown, or its value invalid."""


class CheckpointError(UserError):
    """A checkpoint does not match the run, or is damaged."""


class TrainingError(UserError):
    """Training cannot continue, such as after repeated non-finite losses."""


class Stopped(Exception):
    """A signal ended a run before its last step; it has saved.

    Args:
        signum: the signal.
        message: for the terminal.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def find_user_error(error: BaseException) -> UserError | None:
    """Return the `UserError` inside an exception; Ray wraps those of workers in several layers."""
    return next((found for found in _layers(error, 8) if isinstance(found, UserError)), None)


def _layers(error: object, depth: int) -> Iterator[object]:
    if not isinstance(error, BaseException) or depth == 0:
        return
    yield error
    failures = getattr(error, "worker_failures", None)
    inner = [*failures.values()] if isinstance(failures, dict) else []
    inner += [getattr(error, name, None) for name in ("cause", "_base_exc", "__cause__")]
    for layer in inner:
        yield from _layers(layer, depth - 1)
