"""RAY_ADDRESS: wrong ones give one message in seconds, where Ray would wait for a quarter of an hour."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lafs_ray.errors import ConfigError

ray = pytest.importorskip("ray")
grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.timeout(30)


def refused(address: str) -> ConfigError:
    from lafs_ray.engine.ray_address import check_address

    with pytest.raises(ConfigError) as caught:
        check_address(address)
    return caught.value


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1", "head:", ":6379", "127.0.0.1:99999", "dead"])
def test_address__without_a_cluster(address: str) -> None:
    """A dashboard's address, no address, and one where nothing answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.replace("dead", f"127.0.0.1:{unused.getsockname()[1]}")
        error = refused(address)
    assert error.subject == "RAY_ADDRESS"
    assert address in error.found


def test_address__of_ray_client() -> None:
    """`ray://` is for programs outside the cluster; a job has to run on it."""
    error = refused("ray://127.0.0.1:10001")
    assert "ray://127.0.0.1:10001" in error.found
    assert "ray job submit" in error.fix


def test_auto__without_a_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`auto` is the Ray of this machine: none runs, or the one whose address is noted has ended."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", frozenset)
    assert "auto: Could not find any running Ray instance." in refused("auto").found
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        noted = f"127.0.0.1:{unused.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(noted)
        error = refused("auto")
    # Ray takes the address of this machine in the place of the loopback.
    assert re.search(rf"auto, so [0-9.]+:{noted.rpartition(':')[2]}, where nothing answers", error.found)


def test_address__where_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server, such as the dashboard's, and a server that says nothing."""
    monkeypatch.setattr("lafs_ray.engine.ray_address._TIMEOUT_S", 1.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        assert "is not a cluster's head (UNAVAILABLE)" in refused(f"127.0.0.1:{web.server_port}").found
        web.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "another server, or a busy head" in refused(f"127.0.0.1:{silent.getsockname()[1]}").found


@contextmanager
def server(code: grpc.StatusCode | None) -> Iterator[str]:
    """A gRPC server whose every method ends with a status, OK if None; its address."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if code is not None:
            context.abort(code, "")
        return b""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            assert details.method == "/ray.rpc.NodeInfoGcsService/GetClusterId"
            return grpc.unary_unary_rpc_method_handler(answer)

    listening = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        listening.stop(None)


def test_address__by_what_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that answers is taken; one that refuses the token has a message of its own; other servers are none."""
    from lafs_ray.engine.ray_address import check_address

    with server(None) as address:
        check_address(address)
    with server(grpc.StatusCode.UNIMPLEMENTED) as address:
        assert "is not a cluster's head (UNIMPLEMENTED)" in refused(address).found
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with server(grpc.StatusCode.UNAUTHENTICATED) as address:
        error = refused(address)
    assert error.subject.startswith("the token")
    assert f"{address}: it refuses this process's token; RAY_AUTH_MODE is not set" in error.found
