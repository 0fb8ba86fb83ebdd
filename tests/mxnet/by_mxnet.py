"""Write or read the random records with mxnet itself; run by the python of its environment.

    .venv-mxnet/bin/python tests/mxnet/by_mxnet.py write|read FOLDER FIRST_SEED STOP_SEED

`write` creates mxnet-<seed>.rec and .idx; `read` reads ours-<seed>.rec by index in random order, and from beginning to
end, and prints a line for each difference.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import warnings

warnings.filterwarnings("ignore")

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cases import Record, records  # noqa: E402


def body(record: Record) -> bytes:
    """Encode the record with mxnet's `pack`."""
    label = np.array(record.label, np.float32) if isinstance(record.label, tuple) else record.label
    header = mx.recordio.IRHeader(0, label, record.id, record.id2)
    packed: bytes = mx.recordio.pack(header, record.payload)
    return packed


def write(folder: str, seed: int) -> None:
    """Write the records with mxnet."""
    path = os.path.join(folder, f"mxnet-{seed}")
    writer = mx.recordio.MXIndexedRecordIO(f"{path}.idx", f"{path}.rec", "w")
    for record in records(seed):
        writer.write_idx(record.key, body(record))
    writer.close()


def read(folder: str, seed: int) -> None:
    """Read the records with mxnet, and print differences."""
    path = os.path.join(folder, f"ours-{seed}")
    expected = records(seed)
    reader = mx.recordio.MXRecordIO(f"{path}.rec", "r")
    for record in expected:
        compare(reader.read(), record, f"{seed}, in order")
    if reader.read() is not None:
        print(f"{seed}: more records than written")
    reader.close()
    indexed = mx.recordio.MXIndexedRecordIO(f"{path}.idx", f"{path}.rec", "r")
    if indexed.keys != [record.key for record in expected]:
        print(f"{seed}: other keys")
    for record in random.Random(0).sample(expected, len(expected)):
        compare(indexed.read_idx(record.key), record, f"{seed}, by index")
    indexed.close()


def compare(found: bytes, record: Record, where: str) -> None:
    """Compare raw bytes, and the result of mxnet's `unpack`."""
    header, payload = mx.recordio.unpack(found)
    labels = record.label if isinstance(record.label, tuple) else (record.label,)
    same_labels = np.asarray(header.label, np.float32).tobytes() == struct.pack(f"<{len(labels)}f", *labels)
    if found != body(record) or payload != record.payload or not same_labels:
        print(f"{where}, key {record.key}: other bytes")
    if (header.id, header.id2) != (record.id, record.id2):
        print(f"{where}, key {record.key}: other ids")


if __name__ == "__main__":
    action = {"write": write, "read": read}[sys.argv[1]]
    for number in range(int(sys.argv[3]), int(sys.argv[4])):
        action(sys.argv[2], number)
    print("done", mx.__version__)
