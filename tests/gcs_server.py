"""A server on loopback with the calls of Google Cloud Storage's JSON API that pyarrow makes, and injected faults.

Objects are in memory. It is a process of its own: pyarrow holds the interpreter's lock during some requests, so that a
server in the same process would never answer.
"""

from __future__ import annotations

import base64
import contextlib
import email.parser
import email.policy
import json
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_ROOT = Path(__file__).parents[1]
_CONTROL = "/control"
_PAGE = 3


@dataclass(frozen=True)
class GcsStore:
    """The running server, as tests see it.

    Args:
        endpoint: host and port.
    """

    endpoint: str

    def uri(self, path: str, **options: object) -> str:
        """Return the `gs://…` URI of bucket/key on this server."""
        query = {"endpoint_override": self.endpoint, "scheme": "http", "anonymous": "true", **options}
        return f"gs://{path}?" + "&".join(f"{name}={value}" for name, value in query.items())

    def reset(self, *buckets: str) -> None:
        """Clear objects, log and faults, and make empty buckets."""
        self._control({"buckets": buckets})

    def fail(self, status: int, times: int, method: str = "GET", ending: str = ".rec") -> None:
        """Answer the next requests of a kind with a status; 0: close the connection half-way through the body."""
        self._control({"fault": [status, times, method, ending]})

    def log(self) -> list[tuple[str, str, str]]:
        """Return method, path and range of each request."""
        return [(method, path, span) for method, path, span in self._control({})]

    def _control(self, message: dict[str, Any]) -> Any:
        with urllib.request.urlopen(f"http://{self.endpoint}{_CONTROL}", json.dumps(message).encode()) as answer:
            return json.load(answer)


@contextmanager
def gcs_store() -> Iterator[GcsStore]:
    """Run a server on a free port of loopback during the block."""
    command = [sys.executable, "-m", "tests.gcs_server"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield GcsStore(f"127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


@dataclass
class _Objects:
    """What the server holds."""

    endpoint: str = ""
    buckets: dict[str, dict[str, tuple[bytes, int]]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[list[Any]] = field(default_factory=list)
    uploads: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    generation: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def control(self, message: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Do what a test asks for and return the log."""
        with self.lock:
            if "buckets" in message:
                self.buckets = {name: {} for name in message["buckets"]}
                self.requests.clear()
                self.faults.clear()
            if "fault" in message:
                self.faults.append(message["fault"])
            return list(self.requests)

    def put(self, bucket: str, name: str, content: bytes) -> dict[str, Any]:
        """Store an object and return its resource."""
        with self.lock:
            self.generation += 1
            self.buckets[bucket][name] = (content, self.generation)
        return self.resource(bucket, name)

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """Return the metadata of an object."""
        content, generation = self.buckets[bucket][name]
        checksum = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        time = f"2026-01-01T00:00:{generation % 60:02}.000Z"
        return {
            **{"kind": "storage#object", "bucket": bucket, "name": name, "id": f"{bucket}/{name}/{generation}"},
            **{"generation": str(generation), "metageneration": "1", "size": str(len(content)), "etag": checksum},
            **{"timeCreated": time, "updated": time, "contentType": "application/octet-stream"},
        }

    def fault(self, method: str, path: str) -> int | None:
        """Return the status of the fault that this request meets."""
        with self.lock:
            for fault in self.faults:
                status, times, of_method, ending = fault
                if times and of_method == method and path.endswith(ending):
                    fault[1] -= 1
                    return int(status)
        return None


class _Handler(BaseHTTPRequestHandler):
    store: _Objects
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self._body()
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path)
        if path == _CONTROL:
            self._send(200, self.store.control(json.loads(body)))
            return
        self.store.requests.append((method, path, self.headers.get("Range", "")))
        fault = self.store.fault(method, path)
        if fault:
            self._send(fault, {"error": {"code": fault, "message": "injected"}})
            return
        # Names of objects have slashes of their own, which stay encoded in the path.
        names = [unquote(part) for part in parts.path.split("/") if part]
        # Without the lock: clients leave answers unread.
        with contextlib.suppress(ConnectionError):
            self._route(method, names, query, body, is_cut=fault is not None)

    def _route(self, method: str, names: list[str], query: dict[str, str], body: bytes, *, is_cut: bool) -> None:
        if names[:1] == ["upload"]:
            self._upload(method, names[4], query, body)
            return
        if names[:3] == ["storage", "v1", "b"]:
            bucket, rest = names[3], names[4:]
        else:  # Media by the XML API.
            bucket, rest, query = names[0], ["o", "/".join(names[1:])], {"alt": "media"}
        objects = self.store.buckets.get(bucket)
        if objects is None:
            self._send(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        elif not rest:
            self._send(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
        elif len(rest) == 1:
            self._list(bucket, query)
        elif rest[1] not in objects:
            self._send(404, {"error": {"code": 404, "message": f"No such object: {bucket}/{rest[1]}"}})
        elif method == "DELETE":
            del objects[rest[1]]
            self._send(204, None)
        elif "rewriteTo" in rest:
            copy = self.store.put(rest[4], rest[6], objects[rest[1]][0])
            size = copy["size"]
            self._send(200, {"done": True, "resource": copy, "totalBytesRewritten": size, "objectSize": size})
        elif query.get("alt") == "media":
            self._media(objects[rest[1]], is_cut=is_cut)
        else:
            self._send(200, self.store.resource(bucket, rest[1]))

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = list[Any](), set[str]()
        for name in sorted(self.store.buckets[bucket]):
            head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if not name.startswith(prefix) or name <= query.get("pageToken", ""):
                continue
            if mark:
                prefixes.add(prefix + head + mark)
            elif len(items) == _PAGE:
                self._send(200, {"items": items, "prefixes": sorted(prefixes), "nextPageToken": items[-1]["name"]})
                return
            else:
                items.append(self.store.resource(bucket, name))
        self._send(200, {"items": items, "prefixes": sorted(prefixes)})

    def _media(self, stored: tuple[bytes, int], *, is_cut: bool) -> None:
        content, generation = stored
        first, stop = 0, len(content)
        if asked := self.headers.get("Range", "").removeprefix("bytes="):
            begin, _, end = asked.partition("-")
            first = int(begin) if begin else max(len(content) - int(end), 0)
            stop = min(int(end) + 1, len(content)) if begin and end else len(content)
            if first >= len(content):
                self._send(416, None)
                return
        part = content[first:stop]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(content)}")
        self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if is_cut else part)
        self.close_connection = self.close_connection or is_cut

    def _upload(self, method: str, bucket: str, query: dict[str, str], body: bytes) -> None:
        if bucket not in self.store.buckets:
            self._send(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
        elif query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            info, media = message.iter_parts()
            name = query.get("name") or json.loads(info.get_payload(decode=True) or b"{}")["name"]
            self._send(200, self.store.put(bucket, name, media.get_payload(decode=True) or b""))
        elif method == "POST":
            name = query.get("name") or json.loads(body)["name"]
            key = str(len(self.store.uploads))
            self.store.uploads[key] = (bucket, name, b"")
            base = f"http://{self.store.endpoint}/upload/storage/v1/b/{bucket}/o"
            self._send(200, None, {"Location": f"{base}?uploadType=resumable&upload_id={key}"})
        else:
            self._resume(query["upload_id"], body)

    def _resume(self, key: str, body: bytes) -> None:
        bucket, name, before = self.store.uploads[key]
        span, _, total = self.headers.get("Content-Range", "bytes */*").removeprefix("bytes ").partition("/")
        content = before + body
        self.store.uploads[key] = (bucket, name, content)
        if (total != "*" and len(content) == int(total)) or (span == "*" and not body and total == str(len(content))):
            self._send(200, self.store.put(bucket, name, content))
        else:
            self._send(308, None, {"Range": f"bytes=0-{len(content) - 1}"} if content else {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended; print the port."""
    store = _Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.endpoint = f"127.0.0.1:{server.server_port}"
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
