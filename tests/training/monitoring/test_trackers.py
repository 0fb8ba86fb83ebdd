"""Weights & Biases and MLflow: what they get, resumed series, failures. The packages are stand-ins with their calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lafs_ray.errors import ConfigError
from lafs_ray.training.prepare import check_run
from tests.training.faces import run, tiny


class Wandb(ModuleType):
    """The calls of wandb that are used; series by id, as the service keeps them."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.series: dict[str, dict[int, dict[str, float]]] = {}
        self.starts: list[dict[str, Any]] = []
        self.util = SimpleNamespace(generate_id=lambda: f"id{len(self.starts)}")
        self.fails = False

    def init(self, **options: Any) -> Wandb:
        self.starts.append(options)
        self.current = self.series.setdefault(options["id"], {})
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self.fails:
            raise ConnectionError("no route to host")
        self.current.setdefault(step, metrics)

    def finish(self) -> None:
        self.starts[-1]["finished"] = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb__series_goes_on(tmp_path: Path, face_set_path: str, wandb: Wandb) -> None:
    """An interrupted run continues the series of its first start, with every metric of metrics.jsonl."""
    config = tiny(tmp_path, face_set_path, "log.wandb=faces", "checkpoints.every=2 steps")
    run(config, killed_at=3)
    result = run(config)
    assert [start["id"] for start in wandb.starts] == ["id0", "id0"]
    assert wandb.starts[0]["resume"] == "allow"
    assert (wandb.starts[0]["project"], wandb.starts[0]["name"]) == ("faces", "debug")
    (series,) = wandb.series.values()
    assert {step: line["loss"] for step, line in series.items()} == {m["step"]: m["loss"] for m in result.metrics}
    assert wandb.starts[-1]["finished"]


def test_wandb__that_fails_does_not_end_the_run(tmp_path: Path, face_set_path: str, wandb: Wandb) -> None:
    """A service that fails at each report is named once; the run and metrics.jsonl go on."""
    wandb.fails = True
    result = run(tiny(tmp_path, face_set_path, "log.wandb=faces"))
    assert [line["step"] for line in result.metrics] == [1, 2, 3, 4]
    assert [line for line in result.logged if "no route to host" in line] == ["wandb: no route to host"]


class Client:
    """The calls of mlflow's client that are used."""

    runs: dict[str, dict[tuple[str, int], float]] = {}  # noqa: RUF012 - as a server, for all clients

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri

    def get_experiment_by_name(self, _: str) -> None:
        return None

    def create_experiment(self, _: str) -> str:
        return "1"

    def create_run(self, _: str, run_name: str) -> Any:
        self.runs[run_name] = {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_param(self, _run: str, _key: str, value: str) -> None:
        json.loads(value)

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.runs[run].update({(metric[0], metric[3]): metric[1] for metric in metrics})

    def set_terminated(self, run: str) -> None:
        assert run in self.runs


def test_mlflow__series_goes_on(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that the first start creates gets the metrics of the second as well."""
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Metric = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    config = tiny(tmp_path, face_set_path, "log.mlflow=sqlite:///x.db", "checkpoints.every=2 steps")
    run(config, killed_at=3)
    result = run(config)
    (series,) = Client.runs.values()
    for line in result.metrics:
        assert series["loss", line["step"]] == line["loss"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_tracker__package_is_missing(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without its package the run is refused before it starts, with the extra to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"log\.{name}") as caught:
        check_run(tiny(tmp_path, face_set_path, f"log.{name}=x"))
    assert f"lafs-ray[{name}]" in caught.value.fix
