"""Where the lines of `metrics.jsonl` go as well: TensorBoard, Weights & Biases, MLflow.

A continued run continues its series: the ids that the services gave it are in `<run>/trackers.json`. Steps that are
done again after a crash have the same values, and are dropped or written over.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lafs_ray.config.train import TrainConfig
from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import ConfigError
from lafs_ray.training.monitoring.tensorboard import TensorBoardLog, require_tensorboard

_IDS = "trackers.json"


class Tracker(Protocol):
    """A service that gets every report."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a report."""

    def flush(self) -> None:
        """Make sure that reports are stored; called every few minutes."""

    def close(self) -> None:
        """End the connection."""


def require_trackers(config: TrainConfig) -> None:
    """Check that the packages of the trackers in the configuration are installed.

    Raises:
        ConfigError: one is not.
    """
    if config.log.tensorboard:
        require_tensorboard()
    for name, value in (("wandb", config.log.wandb), ("mlflow", config.log.mlflow)):
        if value is not None:
            _require(name)


def open_trackers(config: TrainConfig, uri: str, first_step: int) -> dict[str, Tracker]:
    """Open the trackers of a run, by name.

    Args:
        config: of the run.
        uri: the run's folder.
        first_step: where the run continues.

    Raises:
        ConfigError: a package is missing, or a service cannot be reached.
    """
    makers: dict[str, Callable[[], Tracker]] = {}
    if config.log.tensorboard:
        makers["TensorBoard"] = lambda: TensorBoardLog(filesystem.join(uri, "tensorboard"), first_step)
    if config.log.wandb is not None:
        makers["wandb"] = lambda: WandbLog(config, uri)
    if config.log.mlflow is not None:
        makers["mlflow"] = lambda: MlflowLog(config, uri)
    return {name: make() for name, make in makers.items()}


class WandbLog:
    """A run of Weights & Biases; WANDB_MODE=offline writes it to `<run>/wandb/`, for `wandb sync` later.

    Args:
        config: `log.wandb` is the project.
        uri: the run's folder.
    """

    def __init__(self, config: TrainConfig, uri: str) -> None:
        wandb = _require("wandb")
        folder = reading.local_path(uri)
        try:
            self._run = wandb.init(
                project=config.log.wandb,
                name=config.run.name,
                id=_run_id(uri, "wandb", wandb.util.generate_id),
                resume="allow",
                dir=folder or os.getcwd(),
                config=config.model_dump(mode="json"),
            )
        except Exception as error:  # the package has its own kinds, and those of its HTTP client
            raise _unreachable(
                "log.wandb", config.log.wandb, error, "set WANDB_MODE=offline, or `wandb login`"
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the metrics of a report at its step."""
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def flush(self) -> None:
        """Do nothing: the package sends by itself."""

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MlflowLog:
    """A run of MLflow in the experiment `lafs_ray`.

    Args:
        config: `log.mlflow` is the tracking URI: of a server, or sqlite:///FILE.
        uri: the run's folder.
    """

    def __init__(self, config: TrainConfig, uri: str) -> None:
        mlflow = _require("mlflow")
        self._metric = importlib.import_module("mlflow.entities").Metric
        try:
            self._client = mlflow.MlflowClient(tracking_uri=config.log.mlflow)
            self._id = _run_id(uri, "mlflow", lambda: self._create(config))
        except Exception as error:  # likewise
            raise _unreachable(
                "log.mlflow", config.log.mlflow, error, "start the server, or correct the URI"
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the metrics of a report at its step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(v), now, line["step"]) for name, v in line.items() if name != "step"]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        """Do nothing: each report is stored when written."""

    def close(self) -> None:
        """Mark the run as ended; a later start continues it all the same."""
        self._client.set_terminated(self._id)

    def _create(self, config: TrainConfig) -> str:
        experiment = self._client.get_experiment_by_name("lafs_ray")
        number = self._client.create_experiment("lafs_ray") if experiment is None else experiment.experiment_id
        run = self._client.create_run(number, run_name=config.run.name)
        for section, value in config.model_dump(mode="json", exclude_defaults=True).items():
            self._client.log_param(run.info.run_id, section, json.dumps(value)[:500])
        return str(run.info.run_id)


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"log.{name}",
            found=f"set, but the package {name} is not installed",
            expected=f"a Python with lafs_ray's extra `{name}`",
            fix=f"pip install 'lafs-ray[{name}]', or set log.{name}=null; metrics.jsonl has the same metrics",
        ) from None


def _run_id(uri: str, service: str, create: Callable[[], str]) -> str:
    """Return the service's id of this run: that of an earlier start, else a new one, which is stored."""
    path = filesystem.join(uri, _IDS)
    ids: dict[str, str] = {}
    if filesystem.exists(path):
        try:
            content = json.loads(filesystem.read_bytes(path))
            ids = {str(k): str(v) for k, v in content.items()}
        except (ValueError, AttributeError):
            ids = {}
    if service not in ids:
        ids[service] = create()
        with filesystem.atomic_write(path) as file:
            file.write(json.dumps(ids).encode())
    return ids[service]


def _unreachable(key: str, value: str | None, error: Exception, fix: str) -> ConfigError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ConfigError(key, found=f"{value}: {reason}", expected="a service that answers", fix=fix)
