"""Directory of a sweep: what it is, and the settings, reports and outcome of each trial.

    <storage>/<name>/sweep.json                  identity of the sweep; a different one is refused
    <storage>/<name>/spent.json                  seconds of all starts so far
    <storage>/<name>/trials/0007/settings.json   written when the trial first starts
    <storage>/<name>/trials/0007/reports.json    written by the trial at every report
    <storage>/<name>/trials/0007/outcome.json    status and message once it has ended
    <storage>/<name>/trials/0007/s0/             an ordinary run, that of seed 0
    <storage>/<name>/confirm/winner-101/…        the same files, for winner and default

Ours: a killed sweep continues from these files, not from Tune's snapshot, which is ten seconds or
more behind and has no state of the scheduler: its rungs would start empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lafs_ray.config.loader import differences
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.tuning.results import Report, Status, Trial
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.trial_config import Sweep

# Settings that may change when a sweep is continued.
_CHANGEABLE = ("budget", "confirm", "storage")


@dataclass(frozen=True)
class TrialProgress:
    """What a trial has reported.

    Args:
        settings: its current ones; pbt changes them.
        reports: in order.
        generation: how many copies of other trials it has continued from (pbt).
        start: report at which this generation's copy was taken; 0 without a copy.
    """

    settings: Settings
    reports: tuple[Report, ...] = ()
    generation: int = 0
    start: int = 0

    @property
    def last_report(self) -> int:
        """Number of this generation's newest report, or of the copy that it began with."""
        own = [one.report for one in self.reports if one.generation == self.generation]
        return max(own, default=self.start)


@dataclass(frozen=True)
class TrialDir:
    """Directory of a trial.

    Args:
        uri: its path.
    """

    uri: str

    def read_settings(self) -> Settings | None:
        """Return the settings proposed, None before that."""
        settings: Settings | None = self._read("settings.json")
        return settings

    def write_settings(self, settings: Settings) -> None:
        """Write the settings proposed."""
        self._write("settings.json", settings)

    def read_progress(self) -> TrialProgress | None:
        """Return the trial's progress, None before its first report."""
        content = self._read("reports.json")
        if content is None:
            return None
        reports = tuple(Report(**line) for line in content.pop("reports"))
        return TrialProgress(reports=reports, **content)

    def write_progress(self, progress: TrialProgress) -> None:
        """Write the trial's progress."""
        self._write("reports.json", asdict(progress))

    def read_outcome(self) -> tuple[Status, str] | None:
        """Return status and message of an ended trial, None before its end."""
        content = self._read("outcome.json")
        return None if content is None else (content["status"], content["message"])

    def write_outcome(self, status: Status, message: str = "") -> None:
        """Write how the trial ended."""
        self._write("outcome.json", {"status": status, "message": message})

    def delete_outcome(self) -> None:
        """Let the trial run again."""
        filesystem.delete(filesystem.join(self.uri, "outcome.json"))

    def read_trial(self, number: int) -> Trial | None:
        """Return the trial, None before it starts."""
        settings, progress, outcome = (
            self.read_settings(),
            self.read_progress(),
            self.read_outcome(),
        )
        if settings is None and outcome is None:
            return None
        default: Status = "waiting" if progress is None else "running"
        status, message = outcome or (default, "")
        progress = progress or TrialProgress(settings or {})
        return Trial(number, progress.settings, status, progress.reports, message)

    def _read(self, name: str) -> Any:
        uri = filesystem.join(self.uri, name)
        if not filesystem.exists(uri):
            return None
        try:
            return json.loads(filesystem.read_bytes(uri))
        except ValueError as error:
            raise DataError(
                uri,
                found=str(error),
                expected="JSON as the sweep wrote it",
                fix=f"delete {self.uri} to run this trial again",
            ) from None

    def _write(self, name: str, content: Any) -> None:
        with filesystem.atomic_write(filesystem.join(self.uri, name)) as file:
            file.write(json.dumps(content).encode())


class SweepDir:
    """Directory of one sweep.

    Args:
        sweep: whose `storage` and `name` give the path.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.uri = filesystem.join(sweep.config.storage, sweep.config.name)

    def trial(self, number: int) -> TrialDir:
        """Return the directory of a trial."""
        return TrialDir(filesystem.join(self.uri, "trials", f"{number:04d}"))

    def confirmation(self, arm: str, seed: int) -> TrialDir:
        """Return the directory of a confirmation run."""
        return TrialDir(filesystem.join(self.uri, "confirm", f"{arm}-{seed}"))

    def read_trials(self) -> list[Trial]:
        """Return all trials started so far."""
        numbers = range(self._sweep.config.budget.trials)
        found = (self.trial(number).read_trial(number) for number in numbers)
        return [trial for trial in found if trial is not None]

    def read_spent_s(self) -> float:
        """Return the seconds of earlier starts."""
        uri = filesystem.join(self.uri, "spent.json")
        if not filesystem.exists(uri):
            return 0.0
        return float(json.loads(filesystem.read_bytes(uri))["seconds"])

    def write_spent_s(self, seconds: float) -> None:
        """Write the seconds of all starts together."""
        self.write("spent.json", json.dumps({"seconds": seconds}).encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of results atomically."""
        with filesystem.atomic_write(filesystem.join(self.uri, name)) as file:
            file.write(content)

    def claim(self, fingerprints: Mapping[str, str]) -> None:
        """Write the sweep's identity, or check it against the one in the directory.

        Args:
            fingerprints: of the training sets, by section.

        Raises:
            ConfigError: the directory holds another sweep or unrelated files.
        """
        sweep, finetune = self._sweep, self._sweep.default_finetune
        config = sweep.config.model_dump(mode="json")
        description = {
            "config": {name: value for name, value in config.items() if name not in _CHANGEABLE},
            "base": sweep.default.model_dump(mode="json"),
            "finetune": finetune.model_dump(mode="json") if finetune else None,
            "faces": dict(fingerprints),
        }
        uri = filesystem.join(self.uri, "sweep.json")
        if filesystem.exists(uri):
            try:
                old = json.loads(filesystem.read_bytes(uri))
            except ValueError:
                old = {}
            found = differences(old, json.loads(json.dumps(description)))
            if found:
                raise ConfigError(
                    f"sweep directory {self.uri} holds another sweep",
                    found="\n    ".join(["these differences (old -> new):", *found]),
                    expected="the settings that the sweep was started with; budget may change",
                    fix="choose another name, or revert these settings",
                )
        elif any(not name.endswith(".partial") for name in filesystem.list_names(self.uri)):
            raise ConfigError(
                f"sweep directory {self.uri}",
                found="files, but no sweep.json",
                expected="an empty directory, or the directory of this sweep",
                fix="choose another name or storage",
            )
        self.write("sweep.json", json.dumps(description, indent=2).encode())
