"""Resources that a run needs on nodes with given labels, and waiting for an autoscaler.

Without these checks Ray waits silently, half an hour or for ever, for what no node has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import ray.train
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2

from lafs_ray.config.train import READING_CPUS, TrainConfig
from lafs_ray.engine.ray_session import join_cluster, start_or_join
from lafs_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_POLL_S = 2.0
_LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class Bundles:
    """A number of equal resource bundles, each on one node with these labels."""

    count: int
    resources: dict[str, float]
    labels: Mapping[str, str]
    key: str
    """The configuration key of the labels."""


@dataclass(frozen=True)
class Shortage:
    """A resource that nodes with these labels have too little of."""

    resource: str
    have: float
    needed: float
    labels: Mapping[str, str]
    key: str

    def __str__(self) -> str:
        where = f" on nodes with {self.key} = {labels_text(self.labels)}" if self.labels else ""
        return f"{self.have:g} of {self.needed:g} {self.resource}s{where}"


@dataclass(frozen=True)
class Misfit:
    """Bundles of which nodes that are large enough in all have no room for each on one node."""

    bundles: Bundles
    room: int
    sizes: Sequence[float]
    """CPUs of the nodes."""

    def __str__(self) -> str:
        wanted = " and ".join(f"{amount:g} {resource}s" for resource, amount in self.bundles.resources.items())
        return f"room for {self.room} times {wanted}, on nodes of {', '.join(f'{size:g}' for size in self.sizes)} CPUs"


def labels_text(labels: Mapping[str, str]) -> str:
    """Return labels as in YAML."""
    return f"{{{', '.join(f'{key}: {value}' for key, value in labels.items())}}}"


def bundles_of(config: TrainConfig) -> list[Bundles]:
    """Return what training workers, preprocessing, reading and evaluation of a run reserve."""
    compute, ingest, online_eval = config.compute, config.ingest, config.online_eval
    worker: dict[str, float] = {"CPU": compute.cpus_per_worker}
    # An elastic run starts with the fewest.
    workers = compute.worker_counts[0]
    if compute.device == "cuda":
        worker["GPU"] = compute.gpus_per_worker
    actors = workers * ingest.actors_per_worker
    found = [
        Bundles(workers, worker, compute.node_labels, "compute.node_labels"),
        Bundles(actors, {"CPU": ingest.cpus_per_actor}, ingest.node_labels, "ingest.node_labels"),
        Bundles(workers, {"CPU": READING_CPUS}, ingest.node_labels, "ingest.node_labels"),
    ]
    if online_eval.enabled:
        gpu = {"GPU": 1.0} if _evaluates_on_gpu(config) else {}
        found.append(Bundles(1, {"CPU": online_eval.cpus, **gpu}, {}, ""))
    return found


def shortages(bundles: Sequence[Bundles]) -> list[Shortage]:
    """Return what all nodes lack, and what those with each set of labels lack."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    groups: list[tuple[Mapping[str, str], str]] = [({}, "")]
    for bundle in bundles:
        if bundle.labels and all(bundle.labels != labels for labels, _ in groups):
            groups.append((bundle.labels, bundle.key))
    found = []
    for labels, key in groups:
        matching = [node for node in nodes if labels.items() <= node["Labels"].items()]
        wanted = [bundle for bundle in bundles if not labels or bundle.labels == labels]
        for resource in ("GPU", "CPU"):
            needed = sum(bundle.count * bundle.resources.get(resource, 0.0) for bundle in wanted)
            have = sum(node["Resources"].get(resource, 0.0) for node in matching)
            if have < needed:
                found.append(Shortage(resource, have, needed, labels, key))
    return found


def misfits(bundles: Sequence[Bundles]) -> list[Misfit]:
    """Return bundles that Ray would wait for, however many resources the nodes have in all."""
    found = []
    for bundle in bundles:
        nodes = [node for node in ray.nodes() if node["Alive"] and bundle.labels.items() <= node["Labels"].items()]
        room = sum(_how_often(bundle.resources, node["Resources"]) for node in nodes)
        if room < bundle.count:
            found.append(Misfit(bundle, room, sorted({node["Resources"].get("CPU", 0.0) for node in nodes})))
    return found


def has_autoscaler() -> bool:
    """Return whether this cluster was started by `ray up` or KubeRay, which add nodes."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def await_nodes(bundles: Sequence[Bundles], wait_s: float) -> None:
    """Request the nodes that a run lacks from the autoscaler, if there is one, and wait for them.

    Args:
        bundles: what the run reserves.
        wait_s: how long at most; `require_nodes` raises for what is lacking then.
    """
    missing: Sequence[Shortage | Misfit] = shortages(bundles) or misfits(bundles)
    if not missing or not wait_s or not has_autoscaler():
        return
    single = [bundle for bundle in bundles for _ in range(bundle.count)]
    request_resources(
        bundles=[bundle.resources for bundle in single],
        bundle_label_selectors=[dict(bundle.labels) for bundle in single],
    )
    deadline = time.monotonic() + wait_s
    logged = -_LOG_EVERY_S
    try:
        while missing and time.monotonic() < deadline:
            if time.monotonic() - logged >= _LOG_EVERY_S:
                logged = time.monotonic()
                lacking = "; ".join(map(str, missing))
                logger.info("waiting for nodes: %s (compute.nodes_wait_s)", lacking)
            time.sleep(_POLL_S)
            missing = shortages(bundles) or misfits(bundles)
    finally:
        # Else the autoscaler would keep them when the run is over.
        request_resources(bundles=[])


def require_nodes(bundles: Sequence[Bundles]) -> None:
    """Check that enough nodes have the labels that the run names, and that each bundle fits on one node.

    Raises:
        ConfigError: with the key, the labels, and the resources of nodes with them; or with a bundle that Ray would
            wait for.
    """
    for missing in shortages(bundles):
        if missing.labels:
            labels = sorted(
                {
                    f"{key}: {value}"
                    for node in ray.nodes()
                    for key, value in node["Labels"].items()
                    if node["Alive"] and key != "ray.io/node-id"
                }
            )
            raise ConfigError(
                missing.key,
                found=f"{labels_text(missing.labels)}: nodes with these labels have "
                f"{missing.have:g} {missing.resource}s in total",
                expected=f"at least {missing.needed:g}",
                fix="add such nodes, or name other labels; the cluster's are: " + (", ".join(labels) or "none"),
            )

    for misfit in misfits(bundles):
        raise ConfigError(
            "the nodes of the Ray cluster",
            found=str(misfit),
            expected=f"room for {misfit.bundles.count}, each on one node",
            fix="reduce compute.cpus_per_worker or ingest.cpus_per_actor, or add larger nodes",
        )


def _how_often(bundle: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return how often a bundle fits on a node that has nothing else."""
    return min(int(node.get(resource, 0.0) / amount + 1e-9) for resource, amount in bundle.items())


def can_see_leaving_nodes() -> bool:
    """Return whether this Ray has the private interface that `leaving_nodes` reads."""
    state = getattr(getattr(ray._private, "state", None), "state", None)
    return callable(getattr(state, "get_draining_nodes", None))


def leaving_nodes() -> set[str]:
    """Return nodes about to be removed (`ray drain-node`, spot notices of the autoscaler)."""
    # What Ray Train itself calls; its public form is a collective operation of the workers.
    return set(ray._private.state.state.get_draining_nodes())


def connect(config: TrainConfig) -> None:
    """Join the cluster of this job, or start one on this machine.

    Raises:
        ConfigError: the cluster has fewer CPUs or GPUs than the run reserves, on all nodes or on those with the labels
            that it names.
    """
    bundles, cpus = bundles_of(config), config.needed_cpus
    start_or_join(cpus)
    await_nodes(bundles, config.compute.nodes_wait_s)
    gpus = sum(bundle.count * bundle.resources.get("GPU", 0.0) for bundle in bundles)
    join_cluster(cpus, _cpu_arithmetic(config), gpus, _gpu_arithmetic(config))
    require_nodes(bundles)


def _gpu_arithmetic(config: TrainConfig) -> str:
    compute, share = config.compute, config.compute.gpus_per_worker
    key = "compute.workers" if compute.min_workers is None else "compute.min_workers"
    return (
        f"{key} = {compute.worker_counts[0] if compute.device == 'cuda' else 0}"
        + (f" × {share:g} GPUs" if share < 1 else "")
        + (" + 1 for online_eval.device=cuda" if _evaluates_on_gpu(config) else "")
    )


def _cpu_arithmetic(config: TrainConfig) -> str:
    compute, ingest = config.compute, config.ingest
    return (
        f"{compute.worker_counts[0]} workers × "
        f"(compute.cpus_per_worker {compute.cpus_per_worker} + "
        f"ingest.actors_per_worker {ingest.actors_per_worker} × ingest.cpus_per_actor "
        f"{ingest.cpus_per_actor:g} + {READING_CPUS:g} for reading)"
        + (f" + online_eval.cpus {config.online_eval.cpus}" if config.online_eval.enabled else "")
    )


def _evaluates_on_gpu(config: TrainConfig) -> bool:
    return config.online_eval.enabled and config.online_eval.device == "cuda"
