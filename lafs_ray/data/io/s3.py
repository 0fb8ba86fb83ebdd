"""File systems by URI; the clients of S3 have explicit timeouts and retries.

pyarrow takes neither from a URI; its default is 31 attempts 0.2 s apart, even when the store returns 503 Slow Down.
Here AWS's standard strategy retries timeouts, resets, truncated bodies, 500 and 503, with jittered exponential backoff
up to 20 s. A request without an answer fails after a minute or two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

from lafs_ray.data.io.gcs import resolve_gs
from lafs_ray.errors import DataError
from lafs_ray.messages import has_secret, mask_secrets

MAX_ATTEMPTS = 6
# pyarrow documents the second one as ignored on Linux; it is not (tests/data/io/test_s3.py).
_SECONDS = {"connect_timeout": 5.0, "request_timeout": 10.0}
_TEXTS = {"region", "scheme", "endpoint_override", "tls_ca_file_path"}
_FLAGS = {"anonymous", "allow_bucket_creation", "force_virtual_addressing"}
_BOOLS = {"true": True, "false": False}


# Making a client may take a request, and every read of a shard needs it.
@lru_cache(maxsize=4096)
def resolve_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI, and the path in it.

    Raises:
        DataError: the scheme is unknown, the URI malformed, or the storage unreachable.
    """
    try:
        if has_secret(uri):
            raise ValueError(
                "credentials in the URI, which would get into logs and checkpoints; put them into the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or into ~/.aws/credentials"
            )
        if uri.startswith("s3://"):
            return _s3_client(uri)
        if uri.startswith(("gs://", "gcs://")):
            return resolve_gs(uri)
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, str(path)
    except (OSError, ValueError) as error:
        raise DataError(
            mask_secrets(uri),
            found=str(error),
            expected="a local path, or a URI such as s3://bucket/key, gs://bucket/key, file:///dir",
            fix="correct the scheme (and percent-encode spaces), or check the credentials",
        ) from error


def _s3_client(uri: str) -> tuple[fs.S3FileSystem, str]:
    """Return the client for a URI, shared by those of other buckets and keys; and the path.

    Raises:
        ValueError: an unknown option, or an invalid value.
        OSError: the bucket's region cannot be looked up.
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ValueError("no bucket")
    query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    options = tuple(sorted(query))
    path = unquote(parts.netloc + parts.path)
    return _client(options, _region(parts.netloc, _settings(options))), path


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
