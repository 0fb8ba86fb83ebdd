"""Directory of a sweep: what it is, and the record of each trial.

    <storage>/<name>/sweep.json                identity of the sweep; a different one is refused
    <storage>/<name>/spent.json                seconds of all starts so far
    <storage>/<name>/trials/0007/trial.json    settings, status and reports of a trial
    <storage>/<name>/trials/0007/s0/           an ordinary run, that of seed 0
    <storage>/<name>/confirm/winner-101/…      the same files, for winner and default

A trial's process writes its record at every report; the driver does when that process has ended.

Ours: a killed sweep continues from these files, not from Tune's snapshot, which is ten seconds or
more behind and has no state of the scheduler: its rungs would start empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lafs_ray.config.loader import differences
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.tuning.results import Report, Trial
from lafs_ray.tuning.trial_config import Sweep

# Settings that may change when a sweep is continued.
_CHANGEABLE = ("budget", "confirm", "storage")


@dataclass(frozen=True)
class TrialDir:
    """Directory of a trial.

    Args:
        uri: its path.
    """

    uri: str

    def read(self) -> Trial | None:
        """Return the trial's record, None before it starts.

        Raises:
            DataError: the record is damaged.
        """
        uri = filesystem.join(self.uri, "trial.json")
        if not filesystem.exists(uri):
            return None
        try:
            content = json.loads(filesystem.read_bytes(uri))
            reports = tuple(Report(**line) for line in content.pop("reports"))
            return Trial(reports=reports, **content)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                uri,
                found=str(error),
                expected="JSON as the sweep wrote it",
                fix=f"delete {self.uri} to run this trial again",
            ) from None

    def write(self, trial: Trial) -> None:
        """Write the trial's record atomically."""
        with filesystem.atomic_write(filesystem.join(self.uri, "trial.json")) as file:
            file.write(json.dumps(asdict(trial)).encode())


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
        found = (self.trial(number).read() for number in numbers)
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
