"""Files of `torch.save` that claim more than they hold, or hold more than tensors and plain values."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.state_dicts import read_checkpoint
from lafs_ray.models.checkpoints.torch_file import load_torch


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def changed_member(
    data: bytes, member: str, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED
) -> bytes:
    """An archive with another content of one member, and right checksums."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", method) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(member) else content)
    return result.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_load_torch__what_checkpoints_hold(legacy: bool) -> None:
    """Tensors of all kinds, views, tied weights, optimizers, NumPy scalars and plain values come back the same."""
    tied = torch.arange(12.0).reshape(3, 4)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {
        "tied": [tied, tied, tied.T, tied[1:, ::2], tied[:0]],
        "types": [
            torch.ones(2, dtype=t) for t in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
        ],
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": (1, 2**70, -1.5, "ü", None, True, OrderedDict(a=1), [], {}, torch.float32, torch.Size([2])),
        "scalars": [np.float64(0.5), np.int64(3), np.float32(1), np.bool_(True)],
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    if legacy:
        content["tied"] = [tied, tied.T]  # Views have a form of their own there.
    found = load_torch(io.BytesIO(saved(content, legacy=legacy)))
    assert repr(found) == repr(content)


def _expanded(legacy: bool) -> bytes:
    return saved({"a": torch.zeros(1).expand(500_000_000)}, legacy=legacy)


def _one_more(data: bytes) -> bytes:
    """A storage of ten numbers that claims 2^30."""
    assert data.count(b"K\x0aN" if b"K\x0aN" in data else b"K\x0at") == 1
    return data.replace(b"K\x0aN", b"J\x00\x00\x00\x40N").replace(b"K\x0at", b"J\x00\x00\x00\x40t")


def _encodings(_: bytes) -> bytes:
    """A text of 64 KiB that is turned into bytes again and again."""
    head = (
        b"\x80\x02c_codecs\nencode\nq\x00X"
        + struct.pack("<I", 1 << 16)
        + b"a" * (1 << 16)
        + b"q\x01X\x06\0\0\0latin1q\x02"
    )
    return head + b"]q\x03(" + b"h\x00h\x01h\x02\x86R" * 30_000 + b"e."


def _called(module: str, argument: bytes) -> Callable[[bytes], bytes]:
    return lambda _: b"\x80\x02c" + module.replace(" ", "\n").encode() + b"\n" + argument + b"\x85R."


TEN = saved({"a": torch.arange(10.0)})
ZEROS = b"J\x00\x00\x00\x7f"  # 2^31 - 2^24
BOMBS: dict[str, bytes] = {
    "expanded": _expanded(legacy=False),
    "expanded, torch 1.5": _expanded(legacy=True),
    "compressed": changed_member(TEN, "data/0", lambda _: bytes(200_000_000), zipfile.ZIP_DEFLATED),
    "claims more": changed_member(TEN, "data.pkl", _one_more),
    "claims more, torch 1.5": _one_more(saved({"a": torch.arange(10.0)}, legacy=True)),
    "fewer bytes": changed_member(TEN, "data/0", lambda content: content[:36]),
    "encodings": changed_member(TEN, "data.pkl", _encodings),
    "bytearray": changed_member(TEN, "data.pkl", _called("builtins bytearray", ZEROS)),
    "storage": changed_member(TEN, "data.pkl", _called("torch.storage UntypedStorage", ZEROS)),
    "tensor": changed_member(TEN, "data.pkl", _called("torch FloatTensor", ZEROS)),
    "memo": changed_member(TEN, "data.pkl", lambda _: b"\x80\x02]r\xff\xff\xff\x7f."),
    "long bytes": changed_member(TEN, "data.pkl", lambda _: b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f."),
    "many lists": changed_member(TEN, "data.pkl", lambda _: b"\x80\x02(" + b"]" * 3_000_000 + b"l."),
    "meta": saved({"a": torch.empty(1_000_000_000, device="meta")}),
    "sparse": saved(
        {"a": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (1_000_000_000,), check_invariants=True)}
    ),
    "twice": saved([torch.arange(1000.0)] * 3) + TEN[:100],
}


@pytest.mark.parametrize("name", BOMBS)
def test_load_torch__claims_that_do_not_hold(tmp_path: Path, name: str) -> None:
    """Refused by a message of a few lines, before torch allocates anything."""
    path = tmp_path / "bomb.pth"
    path.write_bytes(BOMBS[name])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 600


_MEMORY = """
import resource, sys
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.state_dicts import read_checkpoint
from tests.models.checkpoints.test_torch_file import BOMBS, TEN
open(sys.argv[1], "wb").write(TEN)
read_checkpoint(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in BOMBS.items():
    open(sys.argv[1], "wb").write(data)
    try:
        read_checkpoint(sys.argv[1])
    except CheckpointError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_load_torch__memory(tmp_path: Path) -> None:
    """The largest of these files has 3 MB; refusing them all takes less than 200 MB more than reading a sound one."""
    command = [sys.executable, "-c", _MEMORY, str(tmp_path / "a.pth")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < 200 << 10, f"{result.stdout} KiB"


def test_inspector__refuses_what_torch_may_not_load() -> None:
    """Every object that is named in a file of ours is known by name; anything else is not even imported."""
    with pytest.raises(pickle.UnpicklingError, match=re.escape("GLOBAL antigravity.fly")):
        load_torch(io.BytesIO(changed_member(TEN, "data.pkl", _called("antigravity fly", b"K\x01"))))
    assert "antigravity" not in sys.modules
    names: set[Any] = {argument for _, argument, _ in pickletools.genops(b"\x80\x02cantigravity\nfly\n.") if argument}
    assert names == {2, "antigravity fly"}


@pytest.mark.parametrize("state", [(3, "<", None, -1, -1, 0), (3, "<", None, None, ("a",), 8, 8, 0), (3.0, "<"), None])
def test_load_torch__dtype_of_another_state(state: object) -> None:
    """NumPy's dtype takes its state unchecked, and some of them end the process: none but those of numbers pass."""

    class Dtype:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("f8", False, True), state if state is not None else (3, "<", None, None, None, -1, -1, 1)

    data = saved({"lr": Dtype()})
    with pytest.raises(ValueError, match="no plain number"):
        load_torch(io.BytesIO(data))
