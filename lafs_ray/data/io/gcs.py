"""The client of Google Cloud Storage, whose retries end.

Google's client retries 408, 429, 500, 502, 503 and lost connections with exponential backoff, by default for 15
minutes: here for one. A test server, or one in a cluster, is named as for S3: endpoint_override, scheme.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

RETRY_S = 60.0
_TEXTS = {"endpoint_override", "scheme", "project_id", "default_bucket_location"}
_BOOLS = {"true": True, "false": False}


def resolve_gs(uri: str) -> tuple[fs.GcsFileSystem, str]:
    """Return the client for a URI, shared by those of other buckets and keys; and the path.

    Raises:
        ValueError: no bucket, an unknown option, or an invalid value.
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ValueError("no bucket")
    query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    return _client(tuple(sorted(query)), RETRY_S), unquote(parts.netloc + parts.path)


@lru_cache(maxsize=64)
def _client(options: tuple[tuple[str, str], ...], retry_s: float) -> fs.GcsFileSystem:
    settings: dict[str, Any] = {}
    for name, value in options:
        if name in _TEXTS:
            settings[name] = value
        elif name == "anonymous" and value in _BOOLS:
            settings[name] = _BOOLS[value]
        elif name == "retry_limit_seconds":
            retry_s = float(value)
        else:
            known = ", ".join(sorted({*_TEXTS, "anonymous", "retry_limit_seconds"}))
            raise ValueError(f"{name}={value} in the URI; known are {known}")
    return fs.GcsFileSystem(**settings, retry_time_limit=timedelta(seconds=retry_s))
