"""Values of a run in few bytes, the class of machines that has their bits, and their comparison."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch

from tests.regression.runs import CHECKPOINTS, LOSS, METRICS, TIMES

# Hexadecimal digits: of what must be equal, and of what tells which tensor is not.
_DIGITS, _MARK = 24, 4
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "cache size")
_CPU_FLAGS = ("sse4", "avx", "fma", "f16c", "amx")


def machine_class() -> dict[str, Any]:
    """What decides the bits of a float32 computation on a CPU, as far as it can be told.

    oneDNN and MKL choose their kernels by the vendor, family, model and instructions of the CPU, and the size of blocks
    by its caches.
    """
    fields: dict[str, str] = {}
    if (file := Path("/proc/cpuinfo")).exists():
        lines = file.read_text().split("\n\n")[0].splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = sorted(flag for flag in fields.get("flags", "").split() if flag.startswith(_CPU_FLAGS))
    return {
        "machine": platform.machine(),
        **{name: fields.get(name, "") for name in _CPU_FIELDS},
        "flags": " ".join(flags),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }


def class_name(description: Mapping[str, Any]) -> str:
    """The name of a class of machines: its CPU in words, and a hash of all that describes it."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
    names = description["vendor_id"], description["cpu family"], description["capability"]
    return "-".join([*(str(name).lower() or "unknown" for name in names), digest])


def sha256(*parts: bytes) -> str:
    """The leading digits of a hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_DIGITS]


def run_values(folder: Path) -> dict[str, Any]:
    """What a run reported and its last checkpoint."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    names = dict.fromkeys(name for line in lines for name in line if name not in TIMES)
    metrics = {}
    for name in names:
        values = [float(line.get(name, math.nan)) for line in lines]
        metrics[name] = {"sha256": sha256(np.array(values).tobytes()), "last": values[-1]}
    return {
        "losses": [line[LOSS] for line in lines],
        "metrics": metrics,
        "checkpoint": checkpoint_values(sorted(folder.glob(CHECKPOINTS))[-1]),
    }


def checkpoint_values(file: Path) -> dict[str, Any]:
    """For each part of a checkpoint that holds tensors: their number and hashes, without names.

    `sha256` is that of the sorted hashes of all tensors and numbers, each of its type, shape and bytes; `marks` are the
    first digits of each, in the checkpoint's order.
    """
    values = {}
    for part, content in torch.load(file, weights_only=True).items():
        leaves = list(_leaves(content))
        if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            hashes = [_leaf_hash(leaf) for leaf in leaves]
            values[part] = {
                "leaves": len(hashes),
                "sha256": sha256("".join(sorted(hashes)).encode()),
                "marks": "".join(one[:_MARK] for one in hashes),
            }
    return values


def _leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, (list, tuple)):
        for one in content:
            yield from _leaves(one)
    elif isinstance(content, (torch.Tensor, bool, int, float)):
        yield content


def _leaf_hash(leaf: Any) -> str:
    if not isinstance(leaf, torch.Tensor):
        return sha256(repr(leaf).encode())
    content = leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return sha256(f"{leaf.dtype} {tuple(leaf.shape)}".encode(), content)


def column_values(batches: Iterator[dict[str, Any]]) -> dict[str, str]:
    """A hash of each column of a stream of batches: of type, shape and bytes, step by step."""
    parts: dict[str, list[bytes]] = {}
    for columns in batches:
        for name, column in columns.items():
            found = f"{column.dtype} {column.shape}".encode(), np.ascontiguousarray(column)
            parts.setdefault(name, []).extend((found[0], found[1].tobytes()))
    return {name: sha256(*content) for name, content in parts.items()}


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any], renamed: Mapping[str, str]) -> list[str]:
    """A line for each value that differs, of those top-level entries that were found.

    Args:
        recorded: values of a file, with names as they were then.
        found: values of now.
        renamed: new names by old ones, for any level of the values; nothing else may be renamed.
    """
    old = {
        "/".join(renamed.get(name, name) for name in path): value
        for path, value in _flat({name: recorded[name] for name in found if name in recorded})
    }
    new = {"/".join(path): value for path, value in _flat(found)}
    lines = [f"{name}: recorded, but not there any more" for name in old if name not in new]
    lines += [f"{name}: not recorded" for name in new if name not in old]
    for name in old.keys() & new.keys():
        # By their text, so that NaN equals NaN.
        if json.dumps(old[name]) != json.dumps(new[name]):
            lines.append(f"{name}: {_difference(old[name], new[name])}")
    return sorted(lines)


def _flat(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(content, Mapping):
        yield path, content
        return
    for name, value in content.items():
        yield from _flat(value, (*path, name))


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and len(old) == len(new) > _DIGITS:
        marks = range(0, len(old), _MARK)
        changed = [i // _MARK for i in marks if old[i : i + _MARK] != new[i : i + _MARK]]
        return f"{len(changed)} of {len(marks)} differ, numbers {changed[:8]}"
    return f"{str(old)[:200]} -> {str(new)[:200]}"
