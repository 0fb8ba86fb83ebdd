"""The folder of a run: its resolved configuration and its checkpoints, written atomically.

    <storage>/<name>/config.json            what the run is; another configuration is refused
    <storage>/<name>/checkpoints/step-00001234.pt
    <storage>/<name>/metrics.jsonl

A checkpoint is one file, so it is there whole or not at all on a disk and on an object store alike;
nothing executes when it is loaded. Debug mode and Ray write the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch

from lafs_ray import __version__
from lafs_ray.config.loader import differences
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.training.checkpoint.metrics_log import read_metrics

logger = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})\.pt")
_LOCK = ".lock"

# A run may continue on other machines, with other reporting: nothing here changes what it computes.
_FREE_SECTIONS = ("compute", "ingest", "log", "monitoring", "checkpoints", "crops", "online_eval")


class RunDir:
    """The folder of one run.

    Args:
        config: the run's configuration; `run.storage` and `run.name` say where.
        fingerprint: of the set of faces, see `FaceSet.fingerprint`.
    """

    def __init__(self, config: TrainConfig, fingerprint: str) -> None:
        self._config, self._fingerprint = config, fingerprint
        self.uri = filesystem.join(config.run.storage, config.run.name)
        self._checkpoints = filesystem.join(self.uri, "checkpoints")

    def claim(
        self,
        landmarks: str | None = None,
        transformer: str | None = None,
        length: Mapping[str, int] | None = None,
    ) -> None:
        """Make the folder this run's own, or see that it already is; arguments as in `check`.

        Raises:
            ConfigError: the folder holds another run, or something that is no run at all.
        """
        description = self.check(landmarks, transformer, length)
        with filesystem.atomic_write(filesystem.join(self.uri, "config.json")) as file:
            file.write(json.dumps(description, indent=2).encode())

    def check(
        self,
        landmarks: str | None = None,
        transformer: str | None = None,
        length: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """See that the folder is this run's own, or could become so.

        Args:
            landmarks: hash of the landmark weights read; their file may change, a run may not.
            transformer: hash of the transformer's weights read.
            length: of the run in steps, for those who look at the folder without its faces.

        Returns:
            What `config.json` is to say of the run.

        Raises:
            ConfigError: the folder holds another run, or something that is no run at all.
        """
        description = {
            "kind": type(self._config).__name__,
            "config": self._config.model_dump(mode="json"),
            "faces": self._fingerprint,
            "landmarks": landmarks,
            "transformer": transformer,
            "length": length,
        }
        config_uri = filesystem.join(self.uri, "config.json")
        if filesystem.exists(config_uri):
            self._compare(self._read_description(config_uri), description)
        elif any(not name.startswith(".") for name in filesystem.list_names(self.uri)):
            raise ConfigError(
                f"run folder {self.uri}",
                found="files, but no config.json of a run",
                expected="an empty folder, or the folder of this run",
                fix="choose another run.name or run.storage",
            )
        return description

    def _read_description(self, uri: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            content = json.loads(filesystem.read_bytes(uri))
            if isinstance(content, dict) and {"kind", "faces", "config"} <= content.keys():
                return content
        raise ConfigError(
            f"run folder {self.uri}",
            found="a config.json that is not of a run",
            expected="an empty folder, or the folder of this run",
            fix="choose another run.name or run.storage",
        )

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        found = [] if old["kind"] == new["kind"] else [f"kind: {old['kind']} -> {new['kind']}"]
        if old["faces"] != new["faces"]:
            found.append(f"data.path: another set of faces ({old['faces']} -> {new['faces']})")
        is_pretraining = new["kind"] == PretrainConfig.__name__
        for part, key in (
            ("landmarks", "landmarks.weights" if is_pretraining else "start.landmarks"),
            ("transformer", "start.transformer"),
        ):
            if old.get(part) != new[part]:
                hashes = f"{old.get(part)} -> {new[part]}"
                found.append(f"{key}: the file holds other weights now ({hashes})")
        found += differences(_binding(old["config"]), _binding(new["config"]))
        if found:
            raise ConfigError(
                f"run folder {self.uri} holds another run",
                found="\n    ".join(["these differences (old -> new):", *found]),
                expected="the settings that the run was started with",
                fix="choose another run.name, or take back the settings named"
                + ("" if self.steps() else "; it has no checkpoint, so its folder may be deleted"),
            )

    def steps(self) -> list[int]:
        """Steps of the checkpoints present, oldest first."""
        return checkpoint_steps(self.uri)

    def checkpoint_uri(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return filesystem.join(self._checkpoints, f"step-{step:08d}.pt")

    def save(
        self, step: int, state: Mapping[str, Any], keep: int, spared: Collection[int] = ()
    ) -> None:
        """Write the checkpoint taken after `step` steps, then `tidy` and clear failed tries.

        Raises:
            DataError: the storage refuses it; that an old one cannot be deleted is only logged.
        """
        content = {
            "format": FORMAT,
            "kind": type(self._config).__name__,
            "step": step,
            "config": self._config.model_dump(mode="json"),
            "faces": self._fingerprint,
            "versions": versions(),
            **state,
        }
        with filesystem.atomic_write(self.checkpoint_uri(step)) as file:
            _write(content, file)
        try:
            self.tidy(step, keep, spared)
            # One checkpoint is on its way at most, and this one has arrived.
            _delete_unfinished(self._checkpoints)
        except DataError as error:
            logger.warning("old checkpoints stay for now: %s", error)

    def tidy(self, step: int, keep: int, spared: Collection[int] = ()) -> None:
        """Delete checkpoints of up to `step` but the newest `keep` and the best.

        Args:
            step: the newest; a later one was damaged, or the run would have continued from it.
            keep: how many of the newest stay.
            spared: steps of others that stay for now.

        Raises:
            DataError: the storage cannot be read or refuses.
        """
        steps = self.steps()
        stay = {*spared, self._best_step(steps)}
        for old in [old for old in steps if old <= step][:-keep]:
            if old not in stay:
                filesystem.delete(self.checkpoint_uri(old))

    def _best_step(self, steps: Collection[int]) -> int | None:
        """The one of `steps` where checkpoints.keep_best is best, the newest of equals."""
        settings = self._config.checkpoints
        if settings.keep_best is None:
            return None
        sign = 1 if settings.best_is == "highest" else -1
        values = {
            line["step"]: sign * line[settings.keep_best]
            for name in ("metrics.jsonl", "eval.jsonl")
            for line in read_metrics(filesystem.join(self.uri, name))
            if math.isfinite(line.get(settings.keep_best, math.nan))
        }
        known = values.keys() & set(steps)
        return max(known, key=lambda step: (values[step], step), default=None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out while this one trains, and clear what killed ones left behind.

        On a disk alone, and where it can lock files; the lock goes with the process, however it
        ends. An object store has none.

        Raises:
            ConfigError: another process is training this run.
        """
        path = filesystem.local_path(self.uri)
        if path is None:
            yield
            return
        with open(os.path.join(path, _LOCK), "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"run folder {self.uri}",
                    found="another process that is training this run",
                    expected="one process for a run",
                    fix="wait for it or end it, or choose another run.name",
                ) from None
            except OSError:
                logger.warning("%s cannot lock files: start each run once", self.uri)
            for folder in (path, os.path.join(path, "checkpoints")):
                _delete_unfinished(folder)
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
                self._checkpoints,
                found=f"{len(steps)} checkpoints, all damaged",
                expected="at least one that can be read",
                fix="delete the folder's checkpoints to start from the beginning",
            )
        return None


def _delete_unfinished(folder: str) -> None:
    """Delete what killed processes and lost storage left half-written."""
    for name in filesystem.list_names(folder):
        if name.endswith(".partial"):
            filesystem.delete(filesystem.join(folder, name))


def versions() -> dict[str, str]:
    """What computes here; checkpoints and results name it."""
    return {
        "lafs_ray": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def newest_checkpoint(path: str) -> str:
    """The newest checkpoint of a run's folder; any other path is returned as it is.

    Raises:
        CheckpointError: the folder holds no checkpoint.
    """
    if not filesystem.exists(filesystem.join(path, "config.json")):
        return path
    steps = checkpoint_steps(path)
    if not steps:
        raise CheckpointError(
            path,
            found="a run without checkpoints",
            expected="at least one checkpoint",
            fix="let the run reach its first checkpoint, or name another",
        )
    return filesystem.join(path, "checkpoints", f"step-{steps[-1]:08d}.pt")


def checkpoint_steps(run: str) -> list[int]:
    """Steps of the checkpoints in a run's folder, oldest first."""
    names = filesystem.list_names(filesystem.join(run, "checkpoints"))
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def _write(content: Mapping[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # torch's writer hides what went wrong (a full disk, Ctrl-C) behind a complaint about its
        # own position in the file.
        if error.__context__ is not None:
            raise error.__context__ from None
        raise


def _binding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes.

    Where the faces lie does not (their fingerprint is compared), nor where their cached landmarks
    do (their stamp is), nor does the storage's own path.
    """
    kept = {name: value for name, value in config.items() if name not in _FREE_SECTIONS}
    free = ("path", "max_bad_records", "cache")
    kept["data"] = {k: v for k, v in config["data"].items() if k not in free}
    kept["landmarks"] = {k: v for k, v in config["landmarks"].items() if k != "cache"}
    kept["run"] = {k: v for k, v in config["run"].items() if k != "storage"}
    return kept


def load_checkpoint(uri: str) -> dict[str, Any]:
    """Read a checkpoint of ours; no code in it is ever run.

    Raises:
        CheckpointError: it is missing, damaged, not ours, or of a newer format.
    """
    fix = "give a checkpoint that lafs_ray wrote (<run>/checkpoints/step-*.pt)"
    if not filesystem.exists(uri):
        raise CheckpointError(uri, found="no such file", expected="a checkpoint", fix=fix)
    try:
        content = torch.load(io.BytesIO(filesystem.read_bytes(uri)), "cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(uri, found=reason, expected="a whole checkpoint", fix=fix) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = f"format {content.get('format')}" if isinstance(content, dict) else "something else"
        raise CheckpointError(uri, found=found, expected=f"format {FORMAT}", fix=fix)
    return content
