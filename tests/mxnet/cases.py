"""Random records by seed, from the standard library only: the same in both environments."""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xCED7230A)
_KINDS = ["few", "few", "few", "magic", "magic", "labels", "empty", "many", "big", "none"]


class Record(NamedTuple):
    """One record; the label is a float32 number, or a tuple of them."""

    key: int
    label: float | tuple[float, ...]
    id: int
    id2: int
    payload: bytes


def records(seed: int) -> list[Record]:
    """Return the records of one file; the kind of file cycles with the seed."""
    rng = random.Random(seed)
    kind = _KINDS[seed % len(_KINDS)]
    count = {"none": 0, "many": 3000, "big": 3}.get(kind, rng.randrange(1, 25))
    keys = list(range(count)) if rng.random() < 0.6 else rng.sample(range(10**9), count)
    return [
        Record(key, _label(rng, kind), rng.getrandbits(64), rng.getrandbits(64), _payload(rng, kind)) for key in keys
    ]


def _float32(rng: random.Random) -> float:
    value: float = struct.unpack(
        "<f",
        rng.choice(
            [
                struct.pack("<f", rng.randrange(10**6)),
                struct.pack("<f", rng.uniform(-1, 1)),
                struct.pack("<I", rng.randrange(0x7F800000)),
                struct.pack("<f", rng.choice([0.0, -0.0, float("inf"), -1.0, float(2**24)])),
                MAGIC,
            ]
        ),
    )[0]
    return value


def _label(rng: random.Random, kind: str) -> float | tuple[float, ...]:
    if kind == "labels" or rng.random() < 0.2:
        return tuple(_float32(rng) for _ in range(rng.choice([1, 2, 3, 5, 40])))
    return _float32(rng)


def _payload(rng: random.Random, kind: str) -> bytes:
    if kind == "empty":
        return b""
    if kind == "big":
        body = bytearray(rng.randbytes(rng.randrange(1 << 20, 3 << 20)))
        for _ in range(50):
            at = rng.randrange(len(body) - 4)
            body[at : at + 4] = MAGIC
        return bytes(body)
    if kind == "magic":
        pieces = [MAGIC, MAGIC[: rng.randrange(4)], rng.randbytes(rng.randrange(9)), MAGIC * 3]
        return b"".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
    return rng.randbytes(rng.randrange(200))
