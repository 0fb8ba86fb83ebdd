"""No dataset of a run is left without CPUs, however many ranks there are: Ray Data's own classes on nodes that are
not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lafs_ray.errors import ConfigError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

CPUS_OF_RANK = 5.0
STORE = 600e9


def nodes(count: int, cpus: int, gpus: int) -> list[dict[str, Any]]:
    resources = {"CPU": float(cpus), "GPU": float(gpus), "object_store_memory": STORE, "memory": 1e12}
    head = {"Alive": True, "NodeID": "head", "Resources": {"object_store_memory": STORE}, "Labels": {}}
    found = [{"Alive": True, "NodeID": f"n{i}", "Resources": {**resources}, "Labels": {}} for i in range(count)]
    return [head, *found]


class Coordinator:
    """Ray Data's coordinator, called directly, of a run whose trainers take one CPU and one GPU each."""

    def __init__(self, cluster: list[dict[str, Any]], ranks: int) -> None:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

        self.actor = _AutoscalingCoordinatorActor(lambda: 0.0, lambda *_, **__: None, lambda: cluster)
        self.actor.request_resources("train", [{"CPU": 1.0, "GPU": 1.0}] * ranks, expire_after_s=1e9)

    def of(self, name: str) -> Any:
        """Its proxy for one dataset."""
        actor = self.actor
        return SimpleNamespace(
            request_resources=lambda **request: actor.request_resources(name, **request),
            cancel_request=lambda: actor.cancel_request(name),
            get_reserved_resources=lambda: actor.get_reserved_resources(name),
        )


def executors(coordinator: Coordinator, ranks: int) -> list[Any]:
    """As Ray Data makes them, one for each rank's dataset, up to the callbacks."""
    from ray.data import DataContext
    from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler

    from lafs_ray.engine.dataset_share import reserve_cpus
    from lafs_ray.engine.ray_session import configure_context

    context = DataContext()
    configure_context(context, CPUS_OF_RANK)
    reserve_cpus(context)
    return [
        SimpleNamespace(
            _data_context=context,
            _cluster_autoscaler=RateBasedClusterAutoscaler(
                [], f"{rank}", utility_calculator=None, autoscaling_coordinator=coordinator.of(f"data-{rank}")
            ),
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "coordinators"), [(8, 48, 8, 0.0), (8, 72, 8, 8.0), (1, 48, 8, 5.0), (4, 32, 8, 0.0)]
)
def test_share__of_each_rank_does_not_depend_on_the_number_of_ranks(
    count: int, cpus: int, gpus: int, coordinators: float
) -> None:
    """The coordinator's share of 64 ranks on 8 × 48 CPUs is 0; with ours, each has the CPUs that the run has counted,
    and the coordinator's share of memory."""
    ranks = count * gpus
    found = executors(Coordinator(nodes(count, cpus, gpus), ranks), ranks)
    before = [executor._cluster_autoscaler.get_total_resources() for executor in found]
    assert {share.cpu for share in before} == {coordinators}
    for executor in found:
        for make in executor._data_context.custom_execution_callback_classes:
            make().before_execution_starts(executor)
    shares = [executor._cluster_autoscaler.get_total_resources() for executor in found]
    assert [share.cpu for share in shares] == [CPUS_OF_RANK] * ranks
    assert shares[0].object_store_memory == before[0].object_store_memory > STORE // ranks
    if (count, cpus) == (8, 48):
        # This layout has exactly what it needs.
        assert sum(share.cpu for share in shares) == count * (cpus - gpus)


def test_execution__whose_blocks_wait_to_be_taken_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without progress for longer than the timeout, it fails only if the trainer is waiting for a block."""
    from ray.data._internal.execution.no_progress_guard import NoProgressGuard
    from ray.data.exceptions import ExecutionTimeoutError

    from lafs_ray.engine.dataset_share import OwnCpus, time

    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    guard = NoProgressGuard({}, 300, clock=lambda: now[0])
    waits = [False]
    executor = SimpleNamespace(_no_progress_guard=guard, _consumer_idling=lambda: waits[0])
    for _ in range(9):
        now[0] += 99
        guard.check()
        OwnCpus().on_execution_step(executor)
    waits[0] = True
    for _ in range(3):
        now[0] += 99
        guard.check()
        OwnCpus().on_execution_step(executor)
    now[0] += 99
    with pytest.raises(ExecutionTimeoutError):
        guard.check()


def test_require_nodes__each_actor_fits_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight nodes of 48 CPUs have room for eight actors of 40, however many CPUs are left in all; Ray would wait for
    the ninth for ever."""
    from lafs_ray.engine.resources import Bundles, require_nodes

    cluster = nodes(8, 48, 8)
    monkeypatch.setattr(ray, "nodes", lambda: cluster)
    trainers, reading = (Bundles(64, {"CPU": 1.0, **gpu}, {}, "") for gpu in ({"GPU": 1.0}, {}))
    require_nodes([trainers, reading, Bundles(8, {"CPU": 40.0}, {}, ""), Bundles(480, {"CPU": 0.8}, {}, "")])
    with pytest.raises(ConfigError, match="room for 8 times 40 CPUs, on nodes of 0, 48 CPUs") as raised:
        require_nodes([trainers, reading, Bundles(9, {"CPU": 40.0}, {}, "")])
    assert "expected: room for 9, each on one node" in str(raised.value)
    with pytest.raises(ConfigError, match="room for 64 times 1 CPUs and 1 GPUs"):
        require_nodes([Bundles(65, trainers.resources, {}, "")])


def test_await_nodes__larger_nodes_are_requested_where_small_ones_are_enough_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three nodes of 16 CPUs have 48 and room for no actor of 40: an autoscaler adds what has room."""
    from lafs_ray.engine import resources

    cluster, requested = nodes(3, 16, 0), []

    def request(bundles: list[dict[str, float]], **_: Any) -> None:
        requested.append(bundles)
        if bundles:
            cluster.extend(nodes(1, 48, 0))

    monkeypatch.setattr(ray, "nodes", lambda: cluster)
    monkeypatch.setattr(resources, "has_autoscaler", lambda: True)
    monkeypatch.setattr(resources, "request_resources", request)
    monkeypatch.setattr(resources, "_POLL_S", 0.0)
    wanted = [resources.Bundles(1, {"CPU": 40.0}, {}, "")]
    assert not resources.shortages(wanted)
    resources.await_nodes(wanted, 5.0)
    assert requested == [[{"CPU": 40.0}], []]
    resources.require_nodes(wanted)
