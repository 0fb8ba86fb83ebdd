"""An S3 server on loopback, with a request log and fault injection.

moto handles the requests; a WSGI wrapper injects what networks and busy stores do: delays, errors, resets, truncated
responses.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
Answer = Iterable[bytes]


@dataclass(frozen=True)
class Request:
    """One request received by the server.

    Args:
        method: of HTTP.
        path: bucket and key, with a leading slash.
        query: query string.
        byte_range: first byte and the one after the last; None: the whole object.
        at: time of arrival, `time.monotonic`.
    """

    method: str
    path: str
    query: str
    byte_range: tuple[int, int] | None
    at: float


@dataclass
class Fault:
    """A fault injected into the next requests of a kind.

    Args:
        kind: "slow down" (503), "error" (500), "reset" (the connection), "cut" (the body ends half-way), "short" (half
            the range, with a matching Content-Length), "stall" (no answer for `seconds`), "stall in body" (half the
            body, then nothing).
        times: number of requests it affects.
        method: of HTTP.
        ending: suffix of the path.
        seconds: of a stall.
    """

    kind: str
    times: int
    method: str = "GET"
    ending: str = ".rec"
    seconds: float = 60.0


@dataclass
class ObjectStore:
    """The running server."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    latency_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def uri(self, path: str, **options: object) -> str:
        """Return the `s3://…` URI of bucket/key on this server."""
        query = {"endpoint_override": self.endpoint, "scheme": "http", "region": "us-east-1"}
        text = "&".join(f"{name}={value}" for name, value in {**query, **options}.items())
        return f"s3://{path}?{text}"

    def reset(self) -> None:
        """Clear the log, all faults and the latency."""
        with self.lock:
            self.requests.clear()
            self.faults.clear()
            self.latency_s = 0.0

    def log(self, method: str = "GET", ending: str = ".rec") -> list[Request]:
        """Return the requests of one kind, in order of arrival."""
        with self.lock:
            seen = list(self.requests)
        return [one for one in seen if one.method == method and one.path.endswith(ending)]

    def counts(self) -> Counter[str]:
        """Count the requests by method."""
        return Counter(one.method for one in self.requests)

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and path.endswith(fault.ending):
                fault.times -= 1
                return fault
        return None

    def wrap(self, application: Callable[..., Answer]) -> Callable[..., Answer]:
        """Wrap the server's application in this store's log, latency and faults."""

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Answer:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            with self.lock:
                byte_range, now = _byte_range(environ), time.monotonic()
                request = Request(method, path, environ["QUERY_STRING"], byte_range, now)
                self.requests.append(request)
                fault = self._fault(method, path)
            if self.latency_s:
                time.sleep(self.latency_s)
            if fault is None:
                return application(environ, start)
            return self._spoil(fault, application, environ, start)

        return answer

    def _spoil(
        self, fault: Fault, application: Callable[..., Answer], environ: dict[str, Any], start: Callable[..., Any]
    ) -> Answer:
        connection: socket.socket = environ["werkzeug.socket"]
        if fault.kind in ("slow down", "error"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = "503 Slow Down" if fault.kind == "slow down" else "500 Internal Server Error"
            start(status, [("Content-Length", str(len(_SLOW_DOWN))), ("Connection", "close")])
            return [_SLOW_DOWN]
        if fault.kind == "reset":
            raise _reset(connection)
        if fault.kind == "stall":
            self.closing.wait(fault.seconds)
            raise _reset(connection)
        head: list[Any] = []
        body = b"".join(application(environ, lambda *args: head.append(args)))
        half = body[: len(body) // 2]
        status, headers = head[0][:2]
        if fault.kind == "short":
            headers = [(n, str(len(half)) if n.lower() == "content-length" else v) for n, v in headers]
            start(status, headers)
            return [half]
        start(status, headers)
        return self._half(half, connection, fault)

    def _half(self, half: bytes, connection: socket.socket, fault: Fault) -> Iterator[bytes]:
        yield half
        if fault.kind == "stall in body":
            self.closing.wait(fault.seconds)
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("by the test")


def _byte_range(environ: dict[str, Any]) -> tuple[int, int] | None:
    text = environ.get("HTTP_RANGE", "").removeprefix("bytes=")
    if not text:
        return None
    first, last = text.split("-")
    return int(first), int(last) + 1


def _reset(connection: socket.socket) -> ConnectionError:
    """Make closing send a RST; the returned error makes werkzeug close."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return ConnectionResetError("by the test")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass

    def connection_dropped(self, *_: Any, **__: Any) -> None:
        self.close_connection = True


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run an S3 server on a free port of loopback during the block."""
    store = ObjectStore("")
    application = store.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    # Without the usual shutdown before the close, which would send a FIN before the RST.
    server.shutdown_request = lambda request: request.close()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    store.endpoint = f"127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        store.closing.set()
        server.shutdown()
        thread.join(10)
        server.server_close()
