"""Runs on several Ray nodes, of which one vanishes or is about to: real raylets, one machine."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.jobs import Job, Nodes, command, metrics, until
from tests.training.faces import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

logger = logging.getLogger(__name__)

# 120 faces in batches of 8: 15 steps an epoch.
SETTINGS = [
    "duration=60 steps",
    "checkpoints.every=5 steps",
    "compute.cpus_per_worker=2",
    "ingest.actors_per_worker=1",
    "ingest.cpus_per_actor=0.1",
    "model.dropout=0",
    "model.drop_path=0",
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head too small for two workers, a node for them, and one more for when that is gone."""
    nodes = Nodes(3, [4, 4])
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> list[Any]:
    """The metrics of the run in one process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = command(folder, face_set_path, *SETTINGS, "compute.workers=0")
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return metrics(folder)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Every step once, with the losses of one process."""
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), ours["step"]


def training_again(job: Job, since: float) -> float:
    """Seconds until the workers have restarted and done a step."""
    return job.wait_for(r"^step +\d+/", job.wait_for("continuing run at step", since)) - since


def test_node_killed__its_workers_start_on_another(
    nodes: Nodes, tmp_path: Path, face_set_path: str, undisturbed: list[Any]
) -> None:
    """The node of both workers and of their cropping vanishes; the run goes on elsewhere."""
    arguments = command(tmp_path, face_set_path, *SETTINGS, "compute.workers=2")
    with nodes.job(arguments) as job:
        job.wait_for(r"^step +\d*[7-9]/")
        node = nodes.of_workers()[0]
        since = nodes.kill(node)
        logger.info("node killed: training again after %.1f s", training_again(job, since))
        assert job.end() == 0, job.output
    assert_same(metrics(tmp_path), undisturbed)
    until(lambda: not nodes.of_workers(), "the end of all workers", 30)
    nodes.others.append(nodes.add(4))


def test_node_leaves__saved_at_once(nodes: Nodes, tmp_path: Path, face_set_path: str, undisturbed: list[Any]) -> None:
    """A notice that a node will be preempted (`ray drain-node`): saved at once, then the workers restart on another
    node, and nothing else is lost."""
    rarely = [*SETTINGS, "checkpoints.every=50 steps", "compute.workers=2"]
    with nodes.job(command(tmp_path, face_set_path, *rarely)) as job:
        job.wait_for(r"^step +\d*[7-9]/")
        node, since = nodes.of_workers()[0], time.monotonic()
        drain = ["--node-id", node.node_id, "--address", nodes.cluster.address]
        drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        drain += ["--deadline-remaining-seconds", "8"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *drain]
        done = subprocess.run(ray, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        noticed = job.wait_for("nodes that are about to leave: 1; saving now", since)
        checkpoints = tmp_path / "run" / "checkpoints"
        until(lambda: checkpoints.exists() and list(checkpoints.glob("*.pt")), "a checkpoint")
        logger.info("node leaves: saved %.1f s after the notice", time.monotonic() - noticed)
        if job.find_line("step 60/", since) is None:
            again = training_again(job, since)
            logger.info("node leaves: training again %.1f s after the notice", again)
        assert job.end() == 0, job.output
    nodes.kill(node)
    assert_same(metrics(tmp_path), undisturbed)


def test_elastic_run__goes_on_with_fewer_workers(tmp_path: Path, face_set_path: str, undisturbed: list[Any]) -> None:
    """Of two nodes that hold a worker each one vanishes, and none comes: one worker goes on."""
    nodes = Nodes(1, [2, 2])
    try:
        elastic = [*SETTINGS, "compute.workers=2", "compute.min_workers=1"]
        patience = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
        with nodes.job(command(tmp_path, face_set_path, *elastic), **patience) as job:
            job.wait_for(r"^step +\d*[7-9]/")
            assert len(nodes.of_workers()) == 2, "one on each"
            since = nodes.kill(nodes.of_workers()[0])
            logger.info("elastic: training again after %.1f s", training_again(job, since))
            assert job.end() == 0, job.output
    finally:
        nodes.cluster.shutdown()
    assert re.search("continuing run at step", job.output)
    assert_same(metrics(tmp_path), undisturbed)
