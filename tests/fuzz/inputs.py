"""Seeds of each target, and mutations that know the formats."""

from __future__ import annotations

import functools
import io
import pickle
import random
import re
import struct
from collections.abc import Callable

import cv2
import numpy as np

from lafs_ray.data.packed_set import LABEL, Manifest, ShardEntry
from lafs_ray.data.recordio import MAGIC, Header, encode_record, pack

_WORD = struct.pack("<I", MAGIC)
_NUMBERS = [0, 1, 2, 3, 7, 8, 0x7F, 0xFF, 112, 0x7FFF, 0xFFFF, 1 << 20, (1 << 29) - 1, 1 << 29]
_NUMBERS += [3 << 29, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_LIMIT = 1 << 16


@functools.cache
def _faces() -> list[bytes]:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 7, 7, 3), dtype=np.uint8)
    pixels = [cv2.resize(one, (112, 112), interpolation=cv2.INTER_CUBIC) for one in coarse]
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    return [
        cv2.imencode(".jpg", pixels[0], [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes(),
        cv2.imencode(".jpg", pixels[1], progressive)[1].tobytes(),
        cv2.imencode(".jpg", cv2.cvtColor(pixels[2], cv2.COLOR_BGR2GRAY))[1].tobytes(),
        cv2.imencode(".png", cv2.resize(coarse[3], (112, 112), interpolation=0))[1].tobytes(),
    ]


def _insightface() -> tuple[bytes, bytes]:
    """Return a valid set of four images of two identities, and its index."""
    bodies = [pack(Header(2, (5.0, 7.0), 0), b"")]
    bodies += [pack(Header(0, float(i // 2), i + 1), b"image %d " % i * 3) for i in range(4)]
    bodies += [pack(Header(2, (1.0 + 2 * i, 3.0 + 2 * i), 5 + i), b"") for i in range(2)]
    framed = [encode_record(body) for body in bodies]
    offsets = np.cumsum([0, *map(len, framed)])[:-1].tolist()
    return b"".join(framed), b"".join(b"%d\t%d\n" % pair for pair in enumerate(offsets))


SOUND_SET, SOUND_INDEX = _insightface()


def _packed() -> dict[str, bytes]:
    """A sound packed set of two shards, as `jobs/pack.py` writes it, without its manifest."""
    labels = [1, 0, 1, 0]
    files = {}
    for shard in range(2):
        framed = [encode_record(pack(Header(0, float(labels[2 * shard + i]), i), b"image %d" % i)) for i in range(2)]
        name = f"train-0000{shard}-of-00002"
        files[f"{name}.rec"] = b"".join(framed)
        files[f"{name}.idx"] = b"0\t0\n1\t%d\n" % len(framed[0])
    buffer = io.BytesIO()
    np.save(buffer, np.array(labels, LABEL))
    return {**files, "labels.npy": buffer.getvalue()}


PACKED = _packed()


def _manifest() -> bytes:
    names = sorted(name for name in PACKED if name.endswith(".rec"))
    shards = [ShardEntry(name, 2, len(PACKED[name]), "0" * 32, "1" * 32) for name in names]
    return Manifest(
        images=4,
        identities=2,
        unlabeled=0,
        image_size=112,
        color_order="rgb",
        seed=0,
        left_out={"images": 0, "first": []},
        encoded=0,
        sources=({"uri": "a.rec", "first_label": 0},),
        request={"seed": 0},
        checksums={"labels.npy": "2" * 32},
        shards=tuple(shards),
        lafs_ray="0",
    ).as_json()


def _pickles() -> list[bytes]:
    images, same = [b"one", b"two", b"one", b"three"], [True, False]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    contents = [
        (images, same),
        (images, np.array(same)),
        (arrays, [np.bool_(truth) for truth in same]),
        ([images[0]] * 4, [1, 0]),
    ]
    return [pickle.dumps(content, protocol) for content in contents for protocol in (0, 2, 4, 5)]


def seeds(target: str) -> list[bytes]:
    """Sound inputs and known traps of one target."""
    if target in ("index", "record_and_index"):
        lines = SOUND_INDEX.splitlines(keepends=True)
        return [SOUND_INDEX, b"".join(lines[::-1]), SOUND_INDEX.replace(b"\n", b"\r\n"), b"0\t0"]
    if target == "manifest":
        sound = _manifest()
        return [sound, sound.replace(b'"identities": 2', b'"identities": 0'), b"{}"]
    if target == "pairs":
        # Places in the memo up to 2^32, lengths up to 2^63: a few bytes that ask for gigabytes.
        bombs = [b"\x80\x04]r\xff\xff\xff\x7f.", b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."]
        bombs += [b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", b"]p4294967295\n."]
        return [*_pickles(), *bombs]
    if target == "image":
        return [*_faces(), *(resized(_faces()[0], side) for side in (0, 65535, 32000))]
    traps = [pack(Header(0, 1.0, 3), _WORD * n + b"x" * m) for n in range(3) for m in range(5)]
    return [SOUND_SET, b"".join(map(encode_record, traps)), encode_record(traps[0])]


def found(target: str) -> list[bytes]:
    """Inputs that ended in a crash, a hang or gigabytes before the readers were fixed."""
    if target == "records":
        huge = [Header(0, 2.0**100, 1), Header(2, (2.0**70, 2.0**71), 0)]
        ends = pack(Header(2, (2.0, 3.0), 0), b"")
        bodies = [ends, pack(huge[0], b"image"), pack(huge[1], b"")]
        one = [ends, pack(huge[0], b"image"), pack(Header(2, (1.0, 2.0), 2), b"")]
        sets = [b"".join(map(encode_record, each)) for each in (bodies, one)]
        return [*sets, encode_record(bodies[1])]
    if target in ("index", "record_and_index"):
        return [b"\n", b"\r\n\r\n"]
    if target == "manifest":
        # Nested without end; counts that are none, or that ask for gigabytes; other records.
        sound = _manifest()
        changed = [
            sound.replace(b'"identities": 2', b'"identities": ' + value)
            for value in (b'"many"', b"1e18", b"1000000000000", b"-1", b"true", b"null")
        ]
        fewer = sound.replace(b'"images": 2', b'"images": 1').replace(b'"images": 4', b'"images": 2')
        return [b"[" * 100_000, b'{"a":' * 50_000, fewer, *changed]
    if target == "pairs":
        # An array that is named and never filled; a list in itself; a number of 5000 digits.
        arrays = b"\x80\x02]q\x00(" + b"cnumpy\nndarray\n)\x81" * 4 + b"e](K\x01K\x00e\x86."
        digits = b"(lp0\n(lp1\nL1" + b"0" * 5000 + b"L\natp2\n."
        itself = b"\x80\x02]q\x00(h\x00h\x00e]q\x01h\x01a\x86."
        return [arrays, digits, itself, *seeds("pairs")[-4:]]
    if target == "image":
        png = _faces()[3]
        chunk = png.index(b"IDAT") - 4
        return [
            png[:chunk] + struct.pack(">I", 0x7FFFFFF0) + png[chunk + 4 :],
            *(resized(jpeg, side) for jpeg in _faces()[:2] for side in (32000, 65500)),
        ]
    return []


def resized(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose header states another width and height."""
    start = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: start + 5] + struct.pack(">HH", side, side) + jpeg[start + 9 :]


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def _number(data: bytearray, rng: random.Random) -> None:
    """A telling number at a word's place, in either byte order."""
    at = rng.randrange(len(data))
    at -= at % rng.choice([1, 4])
    value = rng.choice(_NUMBERS)
    size = rng.choice([2, 4, 8])
    order = rng.choice(["little", "big"])
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 4, 8, 24])]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice([1, 4, 8, 40, 400])]
    data[rng.randrange(len(data)) : 0] = piece


def _magic(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    at -= at % rng.choice([1, 4, 4])
    data[at : at + rng.choice([0, 4])] = _WORD


def _word(data: bytearray, rng: random.Random) -> None:
    """Another part number or length behind a magic word."""
    at = data.find(_WORD, rng.randrange(len(data)))
    if at >= 0:
        length = rng.choice([rng.randrange(64), rng.choice(_NUMBERS) % (1 << 29)])
        data[at + 4 : at + 8] = struct.pack("<I", rng.randrange(8) << 29 | length)


def _digits(data: bytearray, rng: random.Random) -> None:
    piece = rng.choice([b"\t", b"\n", b"\r", b"-1", b"9" * 19, b" ", b'"', b"\0", b"1e3", b"+4", b"0"])
    at = rng.randrange(len(data))
    data[at : at + rng.choice([0, 1])] = piece


def _marker(data: bytearray, rng: random.Random) -> None:
    """A JPEG marker with a length, or a PNG chunk's name."""
    at = rng.randrange(len(data))
    marker = bytes([0xFF, rng.choice([0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xD9, 0xE1, 0xFE])])
    data[at : at + 4] = rng.choice([marker + struct.pack(">H", rng.randrange(300)), b"acTL"])


def _opcode(data: bytearray, rng: random.Random) -> None:
    """An instruction of pickle with an argument that is too long."""
    code = rng.choice(b"r\x8dB\x8e\x96X\x8ajhl(]}\x90.0123eaRbcuts\x93\x85\x86\x87")
    tail = rng.choice([b"", b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"numpy\nndarray\n"])
    at = rng.randrange(len(data))
    data[at : at + rng.choice([0, 1])] = bytes([code]) + tail


_VALUES = [b"0", b"-1", b"1", b"3", b"1e18", b"NaN", b"true", b"null", b'""', b"[]", b"{}", b'"rgb"']
_VALUES += [b"%d" % (1 << bits) for bits in (24, 31, 40, 62, 64)]
_TOKEN = re.compile(rb'-?\d+(?=[,\n])|"[^"\n]*"')


def _value(data: bytearray, rng: random.Random) -> None:
    """Another value or key in a JSON text: a telling one, or one from elsewhere in it."""
    tokens = list(_TOKEN.finditer(data))
    if tokens:
        chosen = rng.choice(tokens)
        other = rng.choice([*_VALUES, rng.choice(tokens)[0]])
        data[chosen.start() : chosen.end()] = other


Mutation = Callable[[bytearray, random.Random], None]
_GENERAL: list[Mutation] = [_flip, _byte, _number, _cut, _remove, _repeat]
_SPECIAL: dict[str, list[Mutation]] = {
    "frames": [_magic, _word, _word],
    "records": [_magic, _word, _word],
    "indexed_set": [_magic, _word, _word],
    "index": [_digits, _digits],
    "record_and_index": [_digits, _digits],
    "manifest": [_value] * 8,
    "pairs": [_opcode, _opcode],
    "image": [_marker],
}


def mutate(target: str, data: bytes, rng: random.Random) -> bytes:
    """One to eight mutations of an input, never longer than 64 KiB."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        if not changed:
            changed += rng.choice(seeds(target))
        rng.choice(_GENERAL + _SPECIAL[target])(changed, rng)
    return bytes(changed[:_LIMIT])
