"""RAY_ADDRESS checked before Ray uses it: Ray waits a quarter of an hour where no cluster answers."""

from __future__ import annotations

import os
import socket

import ray

from lafs_ray.errors import ConfigError

_TIMEOUT_S = 5.0
_ADDRESS = "host:port of the head of a running cluster, such as 10.0.0.1:6379 (not of its dashboard)"
_FIX = "correct or unset RAY_ADDRESS; unset, Ray starts on this machine"
# The first call of every client of Ray; its empty request is a valid one.
_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def check_address(address: str) -> None:
    """Check that the head of a cluster answers at RAY_ADDRESS, and takes this process's token.

    Args:
        address: `host:port`, or `auto` for the Ray that runs on this machine.

    Raises:
        ConfigError: none does, it refuses the token, or it is no address of a head.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            "RAY_ADDRESS",
            found=f"{address}, an address of Ray Client",
            expected="host:port of the head, given on a node of its cluster: jobs read files and start tasks there",
            fix="submit the command to the cluster with `ray job submit`, or run it on the head",
        )
    target, found = address, address
    if address == "auto":
        try:
            target = ray._private.services.canonicalize_bootstrap_address("auto")
        except ConnectionError as error:
            raise address_error(f"auto: {error}") from None
        found = f"auto, so {target}"
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 1 << 16:
        raise address_error(found)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise address_error(f"{found}, where nothing answers ({error.strerror or error})") from None
    _check_head(target, found)


def address_error(found: str) -> ConfigError:
    """Return the message for an address where Ray does not answer."""
    return ConfigError("RAY_ADDRESS", found=found, expected=_ADDRESS, fix=_FIX)


def _check_head(target: str, found: str) -> None:
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    try:
        with init_grpc_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            channel.unary_unary(_CALL)(b"", timeout=_TIMEOUT_S)
    except ray.exceptions.AuthenticationError as error:
        raise _token_error(found, str(error).splitlines()[0]) from None
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise _token_error(found, "it refuses this process's token") from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise address_error(
                f"{found}, where no head has answered within {_TIMEOUT_S:g} s: another server, or a busy head"
            ) from None
        raise address_error(f"{found}, where something answers that is not a cluster's head ({code.name})") from None


def _token_error(found: str, reason: str) -> ConfigError:
    mode = os.environ.get("RAY_AUTH_MODE")
    return ConfigError(
        "the token of the Ray cluster at RAY_ADDRESS",
        found=f"{found}: {reason}; RAY_AUTH_MODE is {mode or 'not set'}",
        expected="RAY_AUTH_MODE=token, and the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
        fix="copy ~/.ray/auth_token from the head, and export RAY_AUTH_MODE=token",
    )
