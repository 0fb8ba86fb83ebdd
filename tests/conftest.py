"""Fixtures that the tests of several floors share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.local_ray import start
from tests.training.faces import write_face_set

# Ray gives its workers a niceness of 15: beside the other test process they would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes minutes unless asked for it; let one process of pytest-xdist run all tests that start a Ray: two
    would share the cores."""
    for item in items:
        if item.get_closest_marker("long") and "LAFS_LONG" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="takes minutes: LAFS_LONG=1 runs it"))
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: "no_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def face_set_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sound set in insightface's layout: 120 faces of 112×112 of 12 identities, one `.rec`.

    Shared by all tests of the session: copy it before changing a byte.
    """
    path = tmp_path_factory.mktemp("faces") / "train.rec"
    write_face_set(path)
    return str(path)


@pytest.fixture
def local_ray() -> None:
    """A Ray of this machine with `local_ray.CPUS`, which all tests of a process share.

    Its start and its processes' imports cost 10 s of a core, which a test that is not about them need not pay.
    """
    start()


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """For tests that start a Ray of their own in this process: none before, none after. They run last."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    yield
    ray.shutdown()
