"""Benchmarks of the data path as a user types them, as small as they go: that they run, not how fast."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from benchmarks import storage
from tests.benchmarks.commands import output
from tests.object_store import ObjectStore


def test_pack__ratios_memory_and_order() -> None:
    """Packing is timed beside a copy; a packed set mixes identities as a perfect shuffle does."""
    printed = output("pack", "--images", "1000", "--each", "20", "--repeats", "1")
    assert re.search(r"^packing takes \d+\.\d × a sequential copy$", printed, re.MULTILINE), printed
    means = {
        name: float(mean)
        for name, mean in re.findall(r"^(\w+, chunk_records \d+) +mean +([\d.]+)", printed, re.MULTILINE)
    }
    perfect = means["unpacked, chunk_records 1"]
    # An epoch has three batches of 256, so shuffle blocks are 96 neighbors of chunks: eight of them have about 40 of
    # the 50 identities. Perfectly shuffled, a batch of 256 has nearly all.
    assert abs(means["packed, chunk_records 256"] - perfect) < 2
    assert means["unpacked, chunk_records 256"] < perfect - 10


def test_storage__every_way_with_its_requests() -> None:
    """All ways read the same records from the server; coalescing and packing save requests."""
    options = ("--blocks", "1", "--images", "1200", "--shards", "2")
    printed = output("storage", *options, "--latency", "0", "--training", "0")
    rows = re.findall(r"^[( ].{42} +(\d+\.\d\d) +(\d\.\d{3}) +(\d+)$", printed, re.MULTILINE)
    requests = [int(row[2]) for row in rows]
    assert len(rows) == 6, printed
    one_by_one, joined, at_once, ahead, packed, packed_ahead = requests
    assert one_by_one >= 256
    assert joined == at_once == ahead < 64
    assert packed == packed_ahead < joined


def test_storage__request_that_comes_at_once_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has forgotten the requests before when it answers how many they were, however slow it is."""
    reset = ObjectStore.reset

    def slow_reset(store: ObjectStore) -> None:
        time.sleep(0.3)
        reset(store)

    monkeypatch.setattr(ObjectStore, "reset", slow_reset)
    ours, theirs = multiprocessing.Pipe()
    server = threading.Thread(target=storage.serve, args=(theirs,), daemon=True)
    server.start()
    endpoint = ours.recv()
    for expected in (0, 1, 1):
        ours.send(0.0)
        assert ours.recv() == expected
        with closing(HTTPConnection(endpoint)) as connection:
            connection.request("GET", "/")
            connection.getresponse().read()
    ours.send(None)
    server.join(10)


def test_sampler__order_and_costs() -> None:
    """A packed set mixes as a perfect shuffle does, an ordered one by whole chunks does not."""
    options = ("--images", "20000", "--batches", "20", "--records", "5000", "--chunks", "4", "--places", "20000")
    printed = output("sampler", *options)
    ratios = {
        name: float(ratio)
        for name, ratio in re.findall(r"^(.{28}) +[\d.]+ +\d+ to \d+ +(\d\.\d\d) +[\d.]+$", printed, re.MULTILINE)
    }
    found = {name.strip(): ratio for name, ratio in ratios.items()}
    assert found["perfect shuffle"] == 1
    assert abs(found["packed, chunk_records 256"] - 1) < 0.05, printed
    assert found["ordered, chunk_records 256"] < 0.5, printed
    assert re.search(r"^ +5000 +4 +\d+\.\d\d +\d\.\d{4} +\d+$", printed, re.MULTILINE), printed
    assert len(re.findall(r" \d+ ns per image$", printed, re.MULTILINE)) == 4, printed


def test_stream__rates_memory_and_places(tmp_path: Path) -> None:
    """Every way of reading is timed, and the first batch of any place reads one window alone."""
    printed = output("stream", "--images", "4400", "--limit", "512", "--folder", str(tmp_path))
    for name in ("plain sequential read", "ordered, chunk_records 4, bytes", "packed, debug mode"):
        assert re.search(rf"^{name}.* \d+ +\d+\.\d +\d+\.\d{{3}} +\d+$", printed, re.M), printed
    assert re.search(r"^streaming, debug mode: \+ \d+ MB, ", printed, re.M), printed
    shares = re.findall(r", (epoch .*?) +\d\.\d{3} s +[\d.]+ MB +([\d.]+)% of the set$", printed, re.M)
    assert len(shares) == 8, printed
    # A window is 2048 of 4400 records, and joined reads bring gaps between them as well.
    for place, share in shares[4:]:
        assert 3 < float(share) < 75, (place, printed)
