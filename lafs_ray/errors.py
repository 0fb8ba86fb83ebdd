"""Errors that a user can mend: each says what, what was found, what was expected and what to do.

Our own mistakes are `assert` or plain exceptions and keep their traceback; a `UserError` is printed
without one by `lafs_ray.cli.main.run`, which exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterator


class UserError(Exception):
    """A mistake in the user's input, told in four parts.

    Args:
        subject: the file, record or configuration key, as precisely as it is known.
        found: what was there.
        expected: what would have been right.
        fix: what the user can do about it.
    """

    def __init__(self, subject: str, *, found: str, expected: str, fix: str) -> None:
        super().__init__(subject, found, expected, fix)
        self.subject, self.found, self.expected, self.fix = subject, found, expected, fix

    def __str__(self) -> str:
        return (
            f"{self.subject}\n"
            f"  found:    {self.found}\n"
            f"  expected: {self.expected}\n"
            f"  to do:    {self.fix}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders in Ray, keyword-only arguments do not by themselves.
        return _rebuild, (type(self), self.subject, self.found, self.expected, self.fix)


def _rebuild(kind: type[UserError], subject: str, found: str, expected: str, fix: str) -> UserError:
    return kind(subject, found=found, expected=expected, fix=fix)


class DataError(UserError):
    """Something is wrong with a file, an index or a record."""


class ConfigError(UserError):
    """A configuration key is unknown, or its value impossible."""


class CheckpointError(UserError):
    """A checkpoint does not fit the run, or is damaged."""


class TrainingError(UserError):
    """Training has gone wrong, and to go on would waste or spoil it."""


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` inside an exception; Ray wraps what its workers raise in several layers."""
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
