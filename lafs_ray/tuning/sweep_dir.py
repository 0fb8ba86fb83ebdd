"""The folder of a sweep: what each trial is, how far it came and how it ended.

    <storage>/<name>/sweep.json                  what the sweep is; another one is refused
    <storage>/<name>/spent.json                  hours so far
    <storage>/<name>/trials/0007/settings.json   written by the driver when the trial is proposed
    <storage>/<name>/trials/0007/reports.json    written by the trial at every report
    <storage>/<name>/trials/0007/outcome.json    how it ended
    <storage>/<name>/trials/0007/s0/             an ordinary run, that of seed 0
    <storage>/<name>/confirm/winner-101/…        the same files, for winner and default

Ours: a killed sweep continues from these files, not from Tune's snapshot. That one is up to ten
seconds and more behind and holds nothing of the scheduler: rungs would begin empty.
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

# What may change when a sweep is continued: its expense, and what is done with its result.
_FREE = ("budget", "confirm", "storage")


@dataclass(frozen=True)
class Progress:
    """What a trial has written of itself.

    Args:
        settings: that it has now; in a population they change.
        reports: in order.
        generation: how often it went on from a copy of another member.
        start: number of the report that this generation's copy was taken at; 0 without a copy.
        attempts: the start of the sweep that each report was made in.
    """

    settings: Settings
    reports: tuple[Report, ...] = ()
    generation: int = 0
    start: int = 0
    attempts: tuple[str, ...] = ()

    @property
    def last_report(self) -> int:
        """Number of the newest report of this generation, or of the copy that it began with."""
        own = [one.report for one in self.reports if one.generation == self.generation]
        return max(own, default=self.start)


@dataclass(frozen=True)
class TrialDir:
    """Where a trial lies.

    Args:
        uri: its folder.
    """

    uri: str

    def read_settings(self) -> Settings | None:
        """The settings proposed, None before that."""
        settings: Settings | None = self._read("settings.json")
        return settings

    def write_settings(self, settings: Settings) -> None:
        """Keep what is proposed."""
        self._write("settings.json", settings)

    def read_progress(self) -> Progress | None:
        """How far it is, None before its first report."""
        content = self._read("reports.json")
        if content is None:
            return None
        reports = tuple(Report(**line) for line in content.pop("reports"))
        attempts = tuple(content.pop("attempts"))
        return Progress(reports=reports, attempts=attempts, **content)

    def write_progress(self, progress: Progress) -> None:
        """Keep how far it is."""
        self._write("reports.json", asdict(progress))

    def read_outcome(self) -> tuple[Status, str] | None:
        """How it ended, and why; None before that."""
        content = self._read("outcome.json")
        return None if content is None else (content["status"], content["message"])

    def write_outcome(self, status: Status, message: str = "") -> None:
        """Keep how it ended."""
        self._write("outcome.json", {"status": status, "message": message})

    def drop_outcome(self) -> None:
        """It will be tried again."""
        filesystem.delete(filesystem.join(self.uri, "outcome.json"))

    def trial(self, number: int) -> Trial | None:
        """All of it, None before it is proposed."""
        settings, progress = self.read_settings(), self.read_progress()
        if settings is None:
            return None
        outcome = self.read_outcome()
        if progress is None:
            status: Status = outcome[0] if outcome else "waiting"
            return Trial(number, settings, status, (), outcome[1] if outcome else "")
        status, message = outcome or ("running", "")
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
                expected="what the sweep wrote",
                fix=f"delete {self.uri} to do this trial again",
            ) from None

    def _write(self, name: str, content: Any) -> None:
        with filesystem.atomic_write(filesystem.join(self.uri, name)) as file:
            file.write(json.dumps(content).encode())


class SweepDir:
    """The folder of one sweep.

    Args:
        sweep: `storage` and `name` say where.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        config = sweep.config
        self.uri = filesystem.join(filesystem.absolute(config.storage), config.name)

    def trial(self, number: int) -> TrialDir:
        """Where a trial lies."""
        return TrialDir(filesystem.join(self.uri, "trials", f"{number:04d}"))

    def confirmation(self, arm: str, seed: int) -> TrialDir:
        """Where a rerun lies."""
        return TrialDir(filesystem.join(self.uri, "confirm", f"{arm}-{seed}"))

    def trials(self) -> list[Trial]:
        """All trials proposed so far."""
        found = (self.trial(number).trial(number) for number in range(self.count()))
        return [trial for trial in found if trial is not None]

    def count(self) -> int:
        """How many trials there may be."""
        return self._sweep.config.budget.trials

    def spent_s(self) -> float:
        """Seconds that earlier starts took."""
        uri = filesystem.join(self.uri, "spent.json")
        return (
            float(json.loads(filesystem.read_bytes(uri))["seconds"])
            if filesystem.exists(uri)
            else 0.0
        )

    def spend(self, seconds: float) -> None:
        """Keep the seconds of all starts together."""
        self.write("spent.json", json.dumps({"seconds": seconds}).encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of results, all or nothing."""
        with filesystem.atomic_write(filesystem.join(self.uri, name)) as file:
            file.write(content)

    def claim(self, fingerprints: Mapping[str, str]) -> None:
        """Make the folder this sweep's own, or see that it already is.

        Args:
            fingerprints: of the sets that its trials train on.

        Raises:
            ConfigError: the folder holds another sweep, or something that is none at all.
        """
        sweep = self._sweep
        config = sweep.config.model_dump(mode="json")
        description = {
            "config": {name: value for name, value in config.items() if name not in _FREE},
            "base": sweep.default.model_dump(mode="json"),
            "finetune": finetune.model_dump(mode="json")
            if (finetune := sweep.default_finetune)
            else None,
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
                    f"sweep folder {self.uri} holds another sweep",
                    found="\n    ".join(["these differences (old -> new):", *found]),
                    expected="the settings that the sweep was started with; budget may change",
                    fix="choose another name, or take back the settings named",
                )
        elif any(not name.endswith(".partial") for name in filesystem.list_names(self.uri)):
            raise ConfigError(
                f"sweep folder {self.uri}",
                found="files, but no sweep.json of a sweep",
                expected="an empty folder, or the folder of this sweep",
                fix="choose another name or storage",
            )
        self.write("sweep.json", json.dumps(description, indent=2).encode())
