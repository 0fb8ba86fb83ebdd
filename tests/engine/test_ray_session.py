"""Environment that `ray.init` meets: errors in seconds, with the variable, its value and what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.errors import ConfigError

ray = pytest.importorskip("ray")


def start(monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> list[dict[str, Any]]:
    """Call `start_or_join` with a Ray that is not started, or fails; return the arguments of `ray.init`."""
    from lafs_ray.engine import ray_session

    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        if fails is not None:
            raise fails

    for name, value in ray_session.QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    ray_session.start_or_join(3)
    return calls


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_start__empty_address_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """An empty RAY_ADDRESS counts as unset: a Ray of this machine, with the CPUs needed."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    (arguments,) = start(monkeypatch)
    assert arguments["address"] == "local"
    assert arguments["num_cpus"] >= 3
    assert arguments["include_dashboard"] is False
    assert os.environ.get("RAY_ADDRESS") == (address if address == "local" else None)


@pytest.mark.parametrize(("value", "included"), [("1", True), ("0", False), ("", False)])
def test_start__dashboard_on_request(monkeypatch: pytest.MonkeyPatch, value: str, included: bool) -> None:
    """LAFS_DASHBOARD=1 starts the dashboard of a Ray of this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("LAFS_DASHBOARD", value)
    (arguments,) = start(monkeypatch)
    assert arguments["include_dashboard"] is included


def test_start__a_cluster_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where a head answers is left to Ray, and Ray's own error names the variable."""
    monkeypatch.setattr("lafs_ray.engine.ray_session.check_address", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    (arguments,) = start(monkeypatch)
    assert arguments["address"] is None
    with pytest.raises(ConfigError, match="127.0.0.1:6379: no GCS here"):
        start(monkeypatch, ConnectionError("no GCS here"))


@pytest.mark.ray
@pytest.mark.slow
def test_start__long_temporary_folder(no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TMPDIR that is too long for sockets is named, with what to set."""
    from lafs_ray.engine.ray_session import start_or_join

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 60)))
    with pytest.raises(ConfigError, match="too long for the paths of Ray's sockets") as caught:
        start_or_join(1)
    assert (caught.value.subject, "RAY_TMPDIR=/tmp" in caught.value.fix) == ("TMPDIR", True)
