"""Names of published checkpoints, into our modules and back, with nothing executed on loading.

A published pretraining file holds `student` (names `module.backbone.*`, `module.head.*`: it was
wrapped by DDP) and `teacher` (`backbone.*`, `head.*`); a finetuned one holds the network's names
flat. Inside a backbone our names are the published ones, so only prefixes change.
`PublishedLayout` keeps what was taken off, for the way back.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError, UserError

LANDMARK_PARTS = ("stn.", "output_layer.")
"""How the names of a landmark CNN's tensors begin, by themselves and inside a Part fViT."""

_WRAPPERS = ("module.", "backbone.", "encoder.")
_CONTAINERS = ("state_dict", "model")
_LISTED = 12


@dataclass(frozen=True)
class PublishedState:
    """A published network's tensors, under the names of the module that takes them.

    Args:
        backbone: for `FViT`, `PartFViT` or `LandmarkCNN`.
        head: for `DINOHead`; empty in finetuned checkpoints.
        loss: for `MarginSoftmax`. Reference: the pretraining backbone carries one unused.
    """

    backbone: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    loss: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedLayout:
    """Where a published checkpoint keeps a network, and what stands before its names there.

    Args:
        container: key of the checkpoint's dictionary; None: names lie flat.
        backbone: before names of the backbone, such as `module.backbone.`.
        head: before names of the DINO head.
        loss: before the class weight.
    """

    container: str | None = None
    backbone: str = ""
    head: str = "head."
    loss: str = "loss."

    @property
    def is_pretraining(self) -> bool:
        """Whether this is a student's or a teacher's place; these hold no landmark CNN."""
        return self.container in ("student", "teacher")

    def named(self, state: PublishedState) -> dict[str, Tensor]:
        """Tensors of a network under their published names."""
        return {
            getattr(self, part) + name: tensor
            for part in ("backbone", "loss", "head")
            for name, tensor in getattr(state, part).items()
        }


LAYOUTS = {
    None: PublishedLayout(),
    "teacher": PublishedLayout("teacher", "backbone.", "head.", "backbone.loss."),
    "student": PublishedLayout(
        "student", "module.backbone.", "module.head.", "module.backbone.loss."
    ),
}
"""Layouts as published: finetuned networks are flat, the student of pretraining was under DDP."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each name: of the module (used, missing) and of the state (unexpected).

    Args:
        used: names copied into the module.
        missing: names of the module that the state lacks.
        unexpected: names of the state that the module lacks.
        mismatched: names in both, with the state's and the module's shape; not copied.
    """

    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def published_state(
    checkpoint: Mapping[str, Any], role: Literal["teacher", "student"] = "teacher"
) -> PublishedState:
    """Strip wrappers' prefixes from a published checkpoint and part its networks.

    Args:
        checkpoint: what `read_checkpoint` returned: a pretraining checkpoint, a flat state, or a
            flat state under `state_dict` or `model`.
        role: which network of a pretraining checkpoint; a flat state has only one.

    Raises:
        CheckpointError: there are no tensors where they should be.
    """
    _, tensors = network_tensors(checkpoint, role)
    state = PublishedState()
    for name, tensor in tensors.items():
        _, part, inner = split_name(name)
        getattr(state, part)[inner] = tensor
    return state


def network_tensors(
    checkpoint: Mapping[str, Any], role: Literal["teacher", "student"] = "teacher"
) -> tuple[str | None, dict[str, Tensor]]:
    """The dictionary's key under which a network lies (None: flat), and its tensors by full name.

    Raises:
        CheckpointError: there are no tensors where they should be.
    """
    flat: Any = checkpoint
    found = None
    for container in (role, *_CONTAINERS):
        if isinstance(flat.get(container), Mapping):
            flat, found = flat[container], container
            break
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"published checkpoint, {role}",
            found=f"no tensors; keys {_listed(sorted(map(str, checkpoint)))}",
            expected=f"a state under {role!r}, {' or '.join(map(repr, _CONTAINERS))}, or flat",
            fix="give the checkpoint of a network, not of an optimizer or a whole run",
        )
    return found, tensors


def split_name(name: str) -> tuple[str, str, str]:
    """What stands before a published name, the part of `PublishedState` it is of, its name there.

    Example: `module.backbone.loss.weight` is `module.backbone.loss.`, `loss`, `weight`.
    """
    inner = name
    while inner.startswith(_WRAPPERS):
        inner = inner.split(".", 1)[1]
    part = next((part for part in ("head", "loss") if inner.startswith(f"{part}.")), "backbone")
    inner = inner.removeprefix(f"{part}.") if part != "backbone" else inner
    return name.removesuffix(inner), part, inner


def to_published(
    state: PublishedState, role: Literal["teacher", "student"] | None = None
) -> dict[str, Tensor]:
    """Give tensors their published names again: the inverse of `published_state`.

    Args:
        state: tensors of the parts, as their modules' `state_dict` names them.
        role: for which place of a pretraining checkpoint; None for a flat (finetuned) one, which
            has no DINO head.
    """
    assert role is not None or not state.head, "a flat published state has no DINO head"
    return LAYOUTS[role].named(state)


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """Copy the tensors that fit by name and shape into a module.

    Args:
        module: receives values in place; its dtype and device stay.
        state: name to tensor; names that the module lacks are reported, never refused, since a
            published file holds other networks too.
        strict: refuse, before anything is copied, if one of the module's names is missing or
            differs in shape.

    Raises:
        CheckpointError: in strict mode, naming every such key with its shapes.
    """
    report = check_weights(module, state, strict=strict)
    module.load_state_dict({name: state[name] for name in report.used}, strict=False)
    return report


def check_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """What `load_weights` would copy; the module may be without memory (device `meta`).

    Raises:
        CheckpointError: as `load_weights`.
    """
    own = module.state_dict()
    shared = [name for name in own if name in state]
    mismatched = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in shared
        if state[name].shape != own[name].shape
    }
    report = LoadReport(
        used=tuple(name for name in shared if name not in mismatched),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        mismatched=mismatched,
    )
    if strict and (report.missing or report.mismatched):
        raise _does_not_fit(module, own, report)
    return report


def read_checkpoint(uri: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU: safetensors by that ending, otherwise torch's format.

    Nothing in the file is executed: besides tensors and plain containers only the argument
    namespace and NumPy scalars that the reference stores are admitted.

    Args:
        uri: a path or URI.

    Raises:
        CheckpointError: the file is missing, damaged, holds anything else, or is no dictionary.
    """
    uri = str(uri)
    if not filesystem.exists(uri):
        raise CheckpointError(
            uri,
            found="no such file",
            expected="a checkpoint (.pth, .pt or .safetensors)",
            fix="correct the path",
        )
    try:
        with filesystem.local_file(uri) as path:
            read = _read_safetensors if path.endswith(".safetensors") else _read_torch
            content = read(path)
    except pickle.UnpicklingError as error:
        raise _refused(uri, error) from None
    except UserError:
        raise
    except Exception as error:  # damaged files fail in every way, from KeyError to OverflowError
        raise unreadable(uri, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            uri,
            found=f"a {type(content).__name__}",
            expected="a dictionary of names and tensors",
            fix="save the network's state_dict()",
        )
    return content


def unreadable(uri: str, error: Exception) -> CheckpointError:
    """The mistake of a file that a library could not read."""
    return CheckpointError(
        uri,
        found=f"{filesystem.file_size(uri):,} bytes that do not read: {_first_line(error)}",
        expected="a complete checkpoint",
        fix="copy or download the file again, and compare its size with the original's",
    )


def digest(state: Mapping[str, Tensor]) -> str:
    """Hash of names and values, to know the same weights again wherever they lie."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        hashed.update(name.encode())
        # As bytes: NumPy has no bfloat16, and no view of a number without dimensions.
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _does_not_fit(
    module: nn.Module, own: Mapping[str, Tensor], report: LoadReport
) -> CheckpointError:
    lines = [
        f"{name}: {list(theirs)} in the checkpoint, {list(ours)} in the model"
        for name, (theirs, ours) in report.mismatched.items()
    ]
    lines += [
        f"{name}: absent from the checkpoint, {list(own[name].shape)} in the model"
        for name in report.missing
    ]
    return CheckpointError(
        f"weights for {type(module).__name__}",
        found=f"{len(lines)} of {len(own)} names do not fit\n    " + "\n    ".join(lines),
        expected="every name of the model, in the same shape; the checkpoint also holds "
        + (_listed(report.unexpected) or "nothing else"),
        fix="build the model in the size of the checkpoint, or load it part by part",
    )


def _read_safetensors(path: str) -> Any:
    return load_file(path)


def _read_torch(path: str) -> Any:
    scalar = np.float64(0).__reduce__()[0]
    # The reference stores its arguments, and learning rates as NumPy scalars; NumPy 1 and 2 pickle
    # these under different names.
    admitted: list[Any] = [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8")),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
    with torch.serialization.safe_globals(admitted):
        return torch.load(path, map_location="cpu", weights_only=True)


def _refused(uri: str, error: pickle.UnpicklingError) -> CheckpointError:
    # torch's own message goes on to name the switch that would run the code: not repeated here.
    name = re.search(r"GLOBAL (\S+)", str(error))
    unnamed = f"{filesystem.file_size(uri):,} bytes of pickled content, damaged or not plain values"
    return CheckpointError(
        uri,
        found=f"the object {name[1]}, which could run code when loaded" if name else unnamed,
        expected="tensors, numbers, strings, lists and dictionaries",
        fix="if you trust its origin, load it elsewhere and save only the state_dict()",
    )


def _first_line(error: Exception) -> str:
    """Kind and first sentence; libraries append advice that concerns their developers."""
    sentence = str(error).split("\n")[0].split(". ")[0]
    return f"{type(error).__name__} {sentence}".strip()


def _listed(names: tuple[str, ...] | list[str]) -> str:
    rest = f" … and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
