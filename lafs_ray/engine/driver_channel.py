"""The actor between a run's driver and its workers.

Without torch: importing it would cost the actor, and the start of the run, seconds of a core.
"""

from __future__ import annotations

from typing import Any

from lafs_ray.errors import UserError
from lafs_ray.training.run_request import RunRequest


class DriverChannel:
    """Carries progress and a user's mistake from the workers to the driver, and wishes back."""

    def __init__(self) -> None:
        self._lines: list[str | dict[str, Any]] = []
        self._saved: list[int] = []
        self._judged: set[int] = set()
        self._wish = RunRequest.NOTHING
        self._mistake: UserError | None = None

    def say(self, line: str) -> None:
        """Keep a line for the driver."""
        self._lines.append(line)

    def show(self, report: dict[str, Any]) -> None:
        """Keep a report for the driver."""
        self._lines.append(report)

    def drain(self) -> list[str | dict[str, Any]]:
        """Lines and reports since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def saved(self, step: int) -> None:
        """Keep the step of a checkpoint for the driver."""
        self._saved.append(step)

    def drain_saved(self) -> list[int]:
        """Steps of checkpoints since the last call; they are spared until `judging`."""
        steps, self._saved = self._saved, []
        self._judged.update(steps)
        return steps

    def judging(self, steps: set[int]) -> None:
        """Keep which checkpoints the driver's probes are reading."""
        self._judged = steps

    def spared(self) -> set[int]:
        """Steps of checkpoints that are being judged or may be, not to be deleted."""
        return {*self._saved, *self._judged}

    def ask(self, wish: RunRequest) -> None:
        """Ask something of the run."""
        self._wish = max(self._wish, wish)

    def take_request(self) -> RunRequest:
        """What has been asked since the last call; to stop is asked for ever."""
        wish = self._wish
        if wish is not RunRequest.STOP:
            self._wish = RunRequest.NOTHING
        return wish

    def fail(self, mistake: UserError) -> None:
        """Keep a mistake that no restart can mend."""
        self._mistake = self._mistake or mistake

    def mistake(self) -> UserError | None:
        """The mistake kept, if any."""
        return self._mistake
