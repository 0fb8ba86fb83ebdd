"""The driver's thread beside a run, Ray's private interfaces that a run rests on, and what listens."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.engine.signals import StopRequest
from lafs_ray.errors import DataError
from tests import local_ray
from tests.training.faces import logged, tiny

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def leave_alone(loop_config: dict[str, Any]) -> None:
    """Rank 1 meets a user's error outside the training loop; rank 0 waits for it."""
    import torch.distributed as dist

    if ray.train.get_context().get_world_rank() == 0:
        dist.barrier()
        return
    environments = [runtime_env(), ray.get(ray.remote(num_cpus=0)(runtime_env).remote())]
    variables = [os.environ.get(name) for name in ("RAY_DATA_LOG_LEVEL", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")]
    found = str([environments, variables])
    error = DataError("a.pt", found=found, expected="a checkpoint", fix="copy it")
    ray.get(loop_config["channel"].fail.remote(error, alone=True))


def runtime_env() -> dict[str, Any]:
    return dict(ray.get_runtime_context().runtime_env)


@contextlib.contextmanager
def titles_below() -> Iterator[dict[str, bool]]:
    """The command lines of all processes below this one, during the block, and whether each has loaded torch."""
    import psutil  # Ray brings it along.

    titles: dict[str, bool] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for one in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    title = " ".join(one.cmdline())[:200]
                    has_torch = "libtorch" in Path(f"/proc/{one.pid}/maps").read_text()
                    titles[title] = titles.get(title, False) or has_torch

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield titles
    finally:
        ended.set()
        watcher.join()


@dataclass(frozen=True)
class Ended:
    error: DataError
    seconds: float
    titles: dict[str, bool]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Ended:
    """A run on two workers, of which one fails alone."""
    from lafs_ray.engine import ray_train
    from lafs_ray.training.prepare import prepare_run

    local_ray.start()
    folder = tmp_path_factory.mktemp("ended")
    inputs = prepare_run(tiny(folder, face_set_path, "compute.workers=2", "compute.max_failures=3"))
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as monkeypatch, titles_below() as titles:
        monkeypatch.setattr(ray_train, "train_worker", leave_alone)
        with pytest.raises(DataError, match="a checkpoint") as caught:
            ray_train._fit(inputs, None, StopRequest())
    return Ended(caught.value, time.monotonic() - begin, titles)


@pytest.mark.slow
def test_rank_that_fails_alone__ends_the_others(ended: Ended) -> None:
    """A rank that waits in a collective operation does not keep the run from ending with the other's message; nothing
    is restarted."""
    # compute.timeout_s is 600: this is a hang's sign, not a limit on speed.
    assert ended.seconds < 200


@pytest.mark.slow
def test_local_run__has_no_runtime_environment_and_no_needless_actors(ended: Ended) -> None:
    """Processes with a runtime environment import Ray twice and use none of those that are kept ready. What Ray Data
    reads is inherited, and what Ray Train reads reaches its controller alone."""
    assert ended.error.found == str([[{}, {}], ["ERROR", None]])
    with_torch = {title.partition(".")[0]: has_torch for title, has_torch in ended.titles.items()}
    assert (with_torch["ray::RunController"], with_torch["ray::RayTrainWorker"]) == (False, True)
    needless = ("setup_worker", "PlacementGroupCleaner", "PreemptionWatcher", "DatasetManager")
    assert not [title for title in ended.titles if any(name in title for name in needless)]


class Channel:
    """A DriverChannel in this process, some of whose methods fail."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.requests = broken, []

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                if name in self.broken:
                    raise ZeroDivisionError(name)
                if name == "request":
                    self.requests.extend(arguments)
                return [] if name.startswith("drain") else False

        return Method


def follow(monkeypatch: pytest.MonkeyPatch, channel: Channel, polls: float = 0.2) -> Any:
    from lafs_ray.engine import follower as module

    monkeypatch.setattr(module, "_POLL_S", 0.01)
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    follower = module.Follower(channel, None, StopRequest())
    with follower:
        time.sleep(polls)
    return follower


def test_thread_that_fails__stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception is logged, kept for the main thread, and the run is requested to save and stop."""
    from lafs_ray.training.run_request import RunRequest

    channel = Channel("drain_log")
    with logged() as lines:
        follower = follow(monkeypatch, channel)
    assert isinstance(follower.failure, ZeroDivisionError)
    assert lines == ["the run is no longer followed, so it saves and stops: ZeroDivisionError('drain_log')"]
    assert channel.requests == [RunRequest.STOP]


def test_notices__that_cannot_be_read_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray without the private interface is named at the start; errors of it only when they last."""
    from lafs_ray.engine import follower as module

    monkeypatch.setattr(module, "_UNREADABLE_POLLS", 3)
    monkeypatch.setattr(module, "leaving_nodes", lambda: 1 / 0)
    with logged() as lines:
        assert follow(monkeypatch, Channel(), 0.5).failure is None
    assert lines == ["notices of leaving nodes cannot be read for now: ZeroDivisionError('division by zero')"]
    monkeypatch.setattr(module, "can_see_leaving_nodes", lambda: False)
    with logged() as lines:
        follow(monkeypatch, Channel())
    assert [line.startswith(f"Ray {ray.__version__} shows no notices of leaving nodes") for line in lines] == [True]


def test_local_ray__listens_on_loopback_alone(local_ray: None) -> None:
    """No process of a Ray without a cluster listens on another interface, agents and metrics included."""
    import psutil  # Ray brings it along.

    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert any("raylet" in one.name() for one in ours)
    listening = {
        (one.name(), connection.laddr.ip, connection.laddr.port)
        for one in ours
        if one.is_running()
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 8
    assert {address for _, address, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    assert ray.util.get_node_ip_address() == "127.0.0.1"


def test_private_interfaces__are_those_of_the_installed_ray(local_ray: None) -> None:
    """Notices come from a function that returns a dictionary by node; the controller, Ctrl-C and the end of all workers
    rest on methods of Ray Train."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.controller import TrainController

    from lafs_ray.engine.resources import can_see_leaving_nodes, leaving_nodes

    assert can_see_leaving_nodes()
    assert isinstance(ray._private.state.state.get_draining_nodes(), dict)
    assert leaving_nodes() == set()
    assert callable(TorchTrainer._create_default_callbacks)
    assert callable(TorchTrainer._initialize_and_run_controller)
    assert callable(TrainController.abort)
