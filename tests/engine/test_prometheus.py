from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from typing import Any

import pytest

from tests.training.faces import ROOT

pytest.importorskip("ray")
PANELS = ROOT / "configs" / "grafana" / "lafs_ray.json"


def test_panels__show_each_gauge_and_no_other() -> None:
    """Each metric that a panel queries is one that the code sets, and the reverse."""
    from lafs_ray.engine.prometheus import GAUGES, PREFIX

    board = json.loads(PANELS.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    matches = [re.fullmatch(r'(\w+)\{run=~"\$run"\}', query) for query in queries]
    assert all(matches), queries
    # Ray puts ray_ before the names of an application's metrics.
    assert sorted(match[1] for match in matches if match) == sorted(f"ray_{PREFIX}{n}" for n in GAUGES)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert board["templating"]["list"][1]["query"] == f"label_values(ray_{PREFIX}step, run)"


def scraped(address: str, port: int) -> dict[str, float]:
    """What Prometheus would read from a node: name with labels to value."""
    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_gauges__reach_prometheus(no_ray: None) -> None:
    """A worker's metrics can be read where Ray directs Prometheus."""
    import ray

    from lafs_ray.engine.prometheus import Gauges

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
        logging_level="error",
        log_to_driver=False,
    )
    address = ray.util.get_node_ip_address()

    @ray.remote
    class Worker:
        def __init__(self) -> None:
            self.gauges = Gauges("some run")

        def report(self, line: dict[str, Any]) -> None:
            self.gauges.set(line)

    worker = Worker.remote()
    ray.get(worker.report.remote({"step": 7, "loss": 1.5, "ema_momentum": 0.99}))
    deadline, found = time.monotonic() + 90, {}
    while not found and time.monotonic() < deadline:
        time.sleep(0.5)
        page = scraped(address, port)
        found = {n: v for n, v in page.items() if 'run="some run"' in n or "some run" in n}
    named = {name.partition("{")[0]: value for name, value in found.items()}
    assert named == {"ray_lafs_step": 7.0, "ray_lafs_loss": 1.5}
