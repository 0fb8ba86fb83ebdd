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
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter

from lafs_ray.config.loader import differences, resolve
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.json_text import checked, damaged, read_json, write_json
from lafs_ray.errors import ConfigError
from lafs_ray.tuning.config import SCHEDULER_OPTIONS, SEARCHER_OPTIONS, SweepConfig
from lafs_ray.tuning.results import Trial
from lafs_ray.tuning.search_space import Dimension
from lafs_ray.tuning.trial_config import Sweep

# Settings that may change when a sweep is continued.
_CHANGEABLE = ("budget", "confirm", "storage")


class _Spent(BaseModel):
    seconds: Annotated[FiniteFloat, Field(ge=0)]


_TRIAL, _SPENT, _OBJECT = TypeAdapter(Trial), TypeAdapter(_Spent), TypeAdapter(dict[str, Any])


def read_settings(uri: str) -> tuple[SweepConfig, Mapping[str, Any]]:
    """Read the sweep.json of a sweep's folder: its settings, and those of the default.

    Raises:
        UserError: it is damaged, or something else.
    """
    path = filesystem.join(uri, "sweep.json")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(
            path, found="other content", expected="JSON as the sweep wrote it", fix="give the folder of a sweep"
        )
    # All fields are stored, with those that a kind does not have; a sweep's YAML may not name these.
    config = dict(content["config"])
    if isinstance(space := config.get("space"), Mapping):
        config["space"] = {key: Dimension.notation(dimension) for key, dimension in space.items()}
    for section, options in (("scheduler", SCHEDULER_OPTIONS), ("searcher", SEARCHER_OPTIONS)):
        if isinstance(fields := config.get(section), Mapping) and "kind" in fields:
            own = ("kind", *options.get(str(fields["kind"]), ()))
            config[section] = {name: value for name, value in fields.items() if name in own}
    return resolve(SweepConfig, config, path), content.get("base") or {}


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
            return checked(_TRIAL, read_json(uri))
        except ValueError as error:
            raise damaged(uri, error, f"delete {self.uri} to run this trial again") from None

    def write(self, trial: Trial) -> None:
        """Write the trial's record atomically."""
        write_json(filesystem.join(self.uri, "trial.json"), asdict(trial))


class SweepDir:
    """Directory of one sweep.

    Args:
        sweep: whose `storage` and `name` give the path.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.uri = filesystem.join(sweep.config.storage, sweep.config.name)
        filesystem.require_names(filesystem.join(self.uri, "trials", "0000", "s0", "checkpoints", "step-00000000.pt"))

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
        try:
            return checked(_SPENT, read_json(uri)).seconds
        except ValueError as error:
            raise damaged(
                uri, error, 'write {"seconds": S} into it, S the seconds spent so far, or delete it'
            ) from None

    def write_spent_s(self, seconds: float) -> None:
        """Write the seconds of all starts together."""
        write_json(filesystem.join(self.uri, "spent.json"), {"seconds": seconds})

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
                old = checked(_OBJECT, read_json(uri))
            except ValueError as error:
                raise damaged(uri, error, "choose another name") from None
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
        write_json(uri, description)
