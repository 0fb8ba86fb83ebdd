"""The folder of a run: its resolved configuration, metrics and checkpoints, written atomically.

    <storage>/<name>/config.json            what the run is; another configuration is refused
    <storage>/<name>/checkpoints/step-00001234.pt <storage>/<name>/metrics.jsonl

Debug mode and Ray write the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

from lafs_ray.config.loader import differences
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.training.checkpoint.binding_settings import binding_settings, is_distillation
from lafs_ray.training.checkpoint.checkpoint_file import (
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    save_checkpoint,
)
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.checkpoint.run_description import DESCRIPTION, Origin, read_description, write_description

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_GLANCE_S = 0.2

# What --extend may change: the length of a run, and schedules, which are functions of it.
_SCHEDULE = (
    *("duration:", "optim.lr:", "optim.min_lr:", "optim.warmup:", "optim.weight_decay:", "optim.weight_decay_end:"),
    *("optim.clip_grad:", "dino.teacher_temp.", "dino.teacher_momentum:", "dino.freeze_last_layer_epochs:"),
    *("regularizer.", "freeze.landmarks:", "freeze.transformer:"),
)


class RunDir:
    """The folder of one run.

    Args:
        config: the run's configuration; `run.storage` and `run.name` give the folder.
        fingerprint: of the set of faces, see `FaceSet.fingerprint`.
        extend: whether the run may become longer, and its schedule another, than its folder says.
    """

    def __init__(self, config: TrainConfig, fingerprint: str, *, extend: bool = False) -> None:
        self._config, self._fingerprint, self._extend = config, fingerprint, extend
        self.uri = filesystem.join(config.run.storage, config.run.name)

    def claim(self, origin: Origin) -> None:
        """Write config.json, unless the folder belongs to another run.

        Raises:
            ConfigError: the folder holds another run, or files that are no run.
        """
        description = self.check(origin)
        write_description(self.uri, description)

    def restore(self, origin: Origin) -> None:
        """Write config.json again if it, or the whole folder, was deleted while the run goes on.

        Raises:
            DataError: the storage refuses it.
        """
        if not filesystem.exists(self._file):
            write_description(self.uri, self._description(origin))
            logger.warning("%s had disappeared: it is written again; earlier checkpoints may be gone", self._file)

    def check(self, origin: Origin) -> dict[str, Any]:
        """Check that the folder is this run's own, or could become so.

        Returns:
            The content of this run's `config.json`.

        Raises:
            ConfigError: the folder holds another run, or files that are no run.
        """
        filesystem.require_names(filesystem.join(self.uri, "checkpoints", "step-00000000.pt"))
        description = self._description(origin)
        if filesystem.exists(self._file):
            try:
                content = read_description(self.uri)
            except ValueError as error:
                found = f"a config.json that is not of a run ({error})"
            else:
                return {**description, **self._extensions(content, self._compare(content, description))}
        elif (stored := self._description_in_checkpoint(description)) is not None:
            logger.warning("%s is missing: it is written again, as the newest checkpoint describes the run", self._file)
            return {**description, **self._extensions(stored, self._compare(stored, description))}
        elif any(not name.startswith(".") for name in filesystem.list_names(self.uri)):
            found = "files, but no config.json of a run"
        else:
            return description
        raise ConfigError(
            f"run folder {self.uri}",
            found=found,
            expected="an empty folder, or the folder of this run",
            fix="choose another run.name or run.storage",
        )

    @property
    def _file(self) -> str:
        return filesystem.join(self.uri, DESCRIPTION)

    def _description(self, origin: Origin) -> dict[str, Any]:
        return {
            "kind": type(self._config).__name__,
            "config": self._config.model_dump(mode="json"),
            "faces": self._fingerprint,
            **asdict(origin),
        }

    def _description_in_checkpoint(self, default: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return kind, settings and faces of the newest checkpoint that loads, and the rest from `default`."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                content = load_checkpoint(self.checkpoint_uri(step))
                return {**default, **{name: content[name] for name in ("kind", "config", "faces")}}
        return None

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """Return the changes of the schedule that `extend` allows.

        Raises:
            ConfigError: there are other differences, or these are not allowed.
        """
        found = [] if old["kind"] == new["kind"] else [f"kind: {old['kind']} -> {new['kind']}"]
        if old["faces"] != new["faces"]:
            what = "data.mix: other sets" if new["config"]["data"].get("mix") else "data.path: another set"
            found.append(f"{what} of faces ({old['faces']} -> {new['faces']})")
        is_pretraining = "dino" in new["config"]
        transformer = "distillation.teacher" if is_distillation(new["config"]) else "start.student"
        for part, key, what in (
            ("landmarks", "landmarks.weights" if is_pretraining else "start.landmarks", "weights"),
            ("transformer", transformer if is_pretraining else "start.transformer", "weights"),
            ("neighbors", "neighbors.pairs", "pairs"),
        ):
            if old.get(part) != new[part]:
                hashes = f"{old.get(part)} -> {new[part]}"
                found.append(f"{key}: the file holds other {what} now ({hashes})")
        changed = differences(binding_settings(old["config"]), binding_settings(new["config"]))
        allowed = [line for line in changed if line.startswith(_SCHEDULE)]
        found += [line for line in changed if not (self._extend and line in allowed)]
        if found:
            extending = "; --extend changes only the length and the schedule" if self._extend else ""
            raise ConfigError(
                f"run folder {self.uri} holds another run",
                found="\n    ".join(["these differences (old -> new):", *found]),
                expected=f"the settings that the run was started with{extending}",
                fix="choose another run.name, or restore these settings"
                + ("; --extend makes the run longer or changes its schedule" if found == allowed else "")
                + ("" if self.steps() else "; it has no checkpoint, so its folder may be deleted"),
            )
        return allowed

    def _extensions(self, old: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
        """Return the record of all extensions of the run: from which step on, and what changed."""
        before = old.get("extensions")
        extensions = [*before] if isinstance(before, list) else []
        if changes:
            steps = self.steps()
            extensions.append({"after_step": steps[-1] if steps else 0, "changes": changes})
        return {"extensions": extensions} if extensions else {}

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints present, oldest first."""
        return checkpoint_steps(self.uri)

    def checkpoint_uri(self, step: int) -> str:
        """Return where the checkpoint of a step lies."""
        return checkpoint_path(self.uri, step)

    def save(self, step: int, state: Mapping[str, Any], keep: int, protected: Collection[int] = ()) -> None:
        """Write the checkpoint taken after `step` steps, then `prune` and delete partial files.

        Raises:
            DataError: the storage refuses it; that an old one cannot be deleted is only logged.
        """
        content = {
            "kind": type(self._config).__name__,
            "step": step,
            "config": self._config.model_dump(mode="json"),
            "faces": self._fingerprint,
            **state,
        }
        save_checkpoint(self.checkpoint_uri(step), content)
        try:
            self.prune(step, keep, protected)
            # At most one checkpoint is being written, and this one is complete.
            _delete_partial(filesystem.join(self.uri, "checkpoints"))
        except DataError as error:
            logger.warning("old checkpoints are kept for now: %s", error)

    def prune(self, step: int, keep: int, protected: Collection[int] = ()) -> None:
        """Delete checkpoints of up to `step` except the newest `keep` and the best.

        Args:
            step: the newest; a later one was damaged, or the run would have continued from it.
            keep: how many of the newest stay.
            protected: steps of others that stay for now.

        Raises:
            DataError: the storage cannot be read or refuses.
        """
        steps = self.steps()
        stay = {*protected, self._best_step(steps)}
        for old in [old for old in steps if old <= step][:-keep]:
            if old not in stay:
                filesystem.delete(self.checkpoint_uri(old))

    def _best_step(self, steps: Collection[int]) -> int | None:
        """Return the one of `steps` whose checkpoints.keep_best is best, the newest of equals."""
        settings = self._config.checkpoints
        if settings.keep_best is None:
            return None
        sign = 1 if settings.best_is == "highest" else -1
        values = {
            line["step"]: sign * line[settings.keep_best]
            for name in ("metrics.jsonl", "eval.jsonl")
            for line in read_metrics(filesystem.join(self.uri, name))
            if line.get(settings.keep_best) is not None
        }
        known = values.keys() & set(steps)
        return max(known, key=lambda step: (values[step], step), default=None)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training this run, and delete partial files of killed ones.

        Only on file systems with `flock`; the lock ends with the process, however it ends. An object store has none.

        Raises:
            ConfigError: another process is training this run.
        """
        path = reading.local_path(self.uri)
        if path is None:
            yield
            return
        lock = os.path.join(path, _LOCK)
        filesystem.require_regular(lock, lock)
        with filesystem.write_errors(lock):
            file = open(lock, "wb")  # noqa: SIM115 - the `with` below would translate errors of training
        with file:
            try:
                _lock(file)
            except BlockingIOError:
                raise ConfigError(
                    f"run folder {self.uri}",
                    found="another process that is training this run",
                    expected="one process for a run",
                    fix="wait for it or end it, or choose another run.name",
                ) from None
            except OSError:
                logger.warning("%s: no file locks here, so start each run only once", self.uri)
            for folder in (path, os.path.join(path, "checkpoints")):
                _delete_partial(folder)
            yield

    def latest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that loads, None when there is none.

        Damaged files (a disk that lost its last blocks) are skipped with a warning.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return load_checkpoint(self.checkpoint_uri(step))
            except CheckpointError as error:
                logger.warning("skipped a damaged checkpoint: %s", error)
        if steps:
            raise CheckpointError(
                filesystem.join(self.uri, "checkpoints"),
                found="1 checkpoint, damaged" if len(steps) == 1 else f"{len(steps)} checkpoints, all damaged",
                expected="at least one that can be read",
                fix="delete the folder's checkpoints to start from the beginning",
            )
        return None


def is_locked(run: str) -> bool | None:
    """Return whether a process is training the run of a folder; None where that cannot be found out."""
    path = reading.local_path(run)
    try:
        with open(os.path.join(path or "", _LOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock: an older run, or an object store
        return None
    return False


def _lock(file: BinaryIO) -> None:
    """Take the lock; `is_locked` of another process may have it for a moment.

    Raises:
        BlockingIOError: another process trains the run.
        OSError: this file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_GLANCE_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _delete_partial(folder: str) -> None:
    for name in filesystem.list_names(folder):
        if name.endswith(".partial"):
            filesystem.delete(filesystem.join(folder, name))
