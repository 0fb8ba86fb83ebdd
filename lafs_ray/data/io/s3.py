"""S3 by URI, with timeouts and retries of our choosing.

pyarrow takes neither from a URI, and what it chooses for a client made from one is 31 tries 0.2 s
apart, at a store that asks to slow down. Here AWS's standard strategy retries timeouts, resets,
bodies cut short, 500 and 503, with waits that double up to 20 s and are drawn at random. A request
that gets no answer is given up after a minute or two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

MAX_ATTEMPTS = 6
# pyarrow says that the second one is ignored on Linux; it is not (tests/data/test_object_store.py).
_SECONDS = {"connect_timeout": 5.0, "request_timeout": 10.0}
_TEXTS = {"region", "scheme", "endpoint_override", "tls_ca_file_path"}
_FLAGS = {"anonymous", "allow_bucket_creation", "force_virtual_addressing"}
_BOOLS = {"true": True, "false": False}


def is_s3(uri: str) -> bool:
    """Whether a URI names an object of S3, or of a store that speaks like it."""
    return uri.startswith("s3://")


def s3_client(uri: str) -> tuple[fs.S3FileSystem, str]:
    """The client for a URI, shared by all that differ in bucket and key alone; and bucket/key.

    Raises:
        ValueError: credentials in the URI, an unknown option, or a value that is none.
        OSError: the bucket's region cannot be asked for.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ValueError(
            "credentials in the URI, from where they get into logs and checkpoints; put them into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
        )
    if not parts.netloc:
        raise ValueError("no bucket")
    query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    options = tuple(sorted(query))
    path = unquote(parts.netloc + parts.path)
    return _client(options, _region(parts.netloc, _settings(options))), path


def without_credentials(uri: str) -> str:
    """The URI as a message may show it."""
    scheme, mark, rest = uri.partition("://")
    secret, at, place = rest.partition("@")
    return f"{scheme}{mark}…@{place}" if at and "/" not in secret else uri


@lru_cache(maxsize=64)
def _bucket_region(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


def _region(bucket: str, settings: dict[str, Any]) -> str | None:
    if "region" in settings or "endpoint_override" in settings:
        return settings.get("region")
    return _bucket_region(bucket)


def _settings(options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    settings: dict[str, Any] = dict(_SECONDS)
    for name, value in options:
        if name in _SECONDS:
            settings[name] = float(value)
        elif name in _TEXTS:
            settings[name] = value
        elif name in _FLAGS and value in _BOOLS:
            settings[name] = _BOOLS[value]
        else:
            known = ", ".join(sorted({*_SECONDS, *_TEXTS, *_FLAGS}))
            raise ValueError(f"{name}={value} in the URI; known are {known}")
    return settings


@lru_cache(maxsize=64)
def _client(options: tuple[tuple[str, str], ...], region: str | None) -> fs.S3FileSystem:
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS)
    return fs.S3FileSystem(**{**_settings(options), "region": region}, retry_strategy=retries)
