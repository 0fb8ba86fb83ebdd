"""Labels select the nodes of a run; an error where no node has them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lafs_ray.errors import ConfigError
from tests.training.faces import PRETRAIN, ROOT, TINY_PRETRAIN, tiny

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]

# More CPUs than the run takes on either, so that nothing but the labels decides.
NODES = {"gpu": 9, "cpu": 8}


@pytest.fixture(scope="module")
def cluster(no_ray: None) -> Iterator[Any]:
    """A Ray of three raylets: a head without CPUs and a node for each label."""
    from ray.cluster_utils import Cluster

    limits = {"object_store_memory": 200 * 2**20}
    with socket.socket() as online_eval:
        # Ray would insist on 8265, which another cluster of this machine may have.
        online_eval.bind(("127.0.0.1", 0))
        port = online_eval.getsockname()[1]
    # Ray's 15 would leave its workers next to nothing of a busy machine.
    environment = pytest.MonkeyPatch()
    environment.setenv("RAY_worker_niceness", "0")
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, **limits}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for pool, cpus in NODES.items():
            cluster.add_node(num_cpus=cpus, labels={"pool": pool}, **limits)
        cluster.wait_for_nodes(timeout=60)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        environment.undo()


def pretrain(cluster: Any, folder: Path, data: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/pretrain.py", PRETRAIN, *TINY_PRETRAIN, *overrides]
    command += [f"data.path={data}", f"run.storage={folder}", "run.name=run", "compute.workers=2"]
    return subprocess.run(
        [*command, "ingest.actors_per_worker=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )


@pytest.mark.long
def test_labels__place_training_and_crops_on_their_nodes(cluster: Any, tmp_path: Path, face_set_path: str) -> None:
    from ray.util.state import list_actors, list_nodes, list_tasks

    labels = ["compute.node_labels={pool: gpu}", "ingest.node_labels={pool: cpu}"]
    done = pretrain(cluster, tmp_path, face_set_path, "duration=4 steps", *labels)
    assert done.returncode == 0, done.stderr[-3000:]
    pools = {node.node_id: node.labels.get("pool", "head") for node in list_nodes(detail=True)}

    def pools_of(found: list[Any], name: str, attribute: str) -> set[str]:
        return {pools[item.node_id] for item in found if name in getattr(item, attribute)}

    actors = list_actors(limit=1000)
    tasks = list_tasks(limit=1000)
    # Its node is the driver's, which no worker's loss takes away.
    assert pools_of(actors, "DriverChannel", "class_name") == {"head"}
    assert pools_of(actors, "RayTrainWorker", "class_name") == {"gpu"}
    assert pools_of(actors, "MapWorker", "class_name") == {"cpu"}
    assert pools_of(tasks, "read_records", "name") == {"cpu"}


def test_address__of_a_real_head(cluster: Any) -> None:
    """Its head answers the call that `check_address` makes; another server of Ray does not."""
    from lafs_ray.engine.ray_address import check_address

    check_address(cluster.address)
    raylet = next(node for node in ray.nodes() if node["Alive"])
    with pytest.raises(ConfigError, match="is not a cluster's head"):
        check_address(f"{raylet['NodeManagerAddress']}:{raylet['NodeManagerPort']}")


def test_labels__that_no_node_has_are_told_with_those_there_are(
    cluster: Any, tmp_path: Path, face_set_path: str
) -> None:
    from lafs_ray.engine.resources import connect

    settings = ["compute.workers=2", "ingest.actors_per_worker=1"]
    config = tiny(tmp_path, face_set_path, *settings, "ingest.node_labels={pool: tpu}")
    with pytest.raises(ConfigError, match="nodes with these labels have 0 CPUs") as raised:
        connect(config)
    message = str(raised.value)
    assert message.startswith("ingest.node_labels\n  found:    {pool: tpu}: ")
    # Two workers, each with one preprocessing actor of one CPU and one for reading.
    assert "expected: at least 4" in message
    assert "the cluster's are: pool: cpu, pool: gpu" in message


def test_await_nodes__asks_the_autoscaler_and_ends_when_they_are_there(
    cluster: Any, tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an autoscaler it returns at once; with one it logs what is missing, and waits."""
    from lafs_ray.engine import resources

    settings = ["compute.workers=1", "compute.node_labels={pool: late}", "compute.cpus_per_worker=3"]
    bundles = resources.bundles_of(tiny(tmp_path, face_set_path, *settings))
    caplog.set_level(logging.INFO, "lafs_ray")
    resources.await_nodes(bundles, 60.0)
    assert caplog.messages == []
    with pytest.raises(ConfigError, match="have 0 CPUs in total"):
        resources.require_nodes(bundles)

    requested: list[SimpleNamespace] = []
    monkeypatch.setattr(resources, "_POLL_S", 0.2)
    monkeypatch.setattr(resources, "has_autoscaler", lambda: True)
    monkeypatch.setattr(resources, "request_resources", lambda **kwargs: requested.append(SimpleNamespace(**kwargs)))
    waiting = threading.Thread(target=resources.await_nodes, args=(bundles, 60.0))
    waiting.start()
    node = cluster.add_node(num_cpus=3, labels={"pool": "late"}, object_store_memory=200 * 2**20)
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    cluster.remove_node(node)
    assert caplog.messages == [
        "waiting for nodes: 0 of 3 CPUs on nodes with compute.node_labels = {pool: late} (compute.nodes_wait_s)"
    ]
    first, last = requested
    assert {"CPU": 3} in first.bundles
    assert first.bundle_label_selectors[first.bundles.index({"CPU": 3})] == {"pool": "late"}
    assert last.bundles == []


def test_has_autoscaler__not_on_a_cluster_of_ray_start(cluster: Any) -> None:
    from lafs_ray.engine.resources import has_autoscaler

    assert has_autoscaler() is False
