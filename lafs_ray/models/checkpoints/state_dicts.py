"""Published checkpoints: their names of tensors, and reading them without executing anything.

A published pretraining file holds `student` (names `module.backbone.*`, `module.head.*`: it was wrapped by DDP) and
`teacher` (`backbone.*`, `head.*`); a finetuned one holds the network's names flat. Inside a backbone our names are the
published ones, so only prefixes change. `PublishedLayout` keeps the prefixes, for the conversion back.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError, UserError
from lafs_ray.models.checkpoints.torch_file import load_torch

Role = Literal["teacher", "student"]
"""Which network of a pretraining checkpoint."""

LANDMARK_PREFIXES = ("stn.", "output_layer.")
"""Prefixes of a landmark CNN's tensors, alone and inside a Part fViT."""

_WRAPPERS = ("module.", "backbone.", "encoder.")
_CONTAINERS = ("state_dict", "model")
_MAX_LISTED = 12
_MAX_LINES, _MAX_CHARACTERS = 40, 160


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
    """Key and name prefixes under which a published checkpoint stores a network.

    Args:
        container: key of the checkpoint's dictionary; None: the tensors are at the top level.
        backbone: prefix of the backbone's tensors, such as `module.backbone.`.
        head: prefix of the DINO head's.
        loss: prefix of the class weight.
    """

    container: str | None = None
    backbone: str = ""
    head: str = "head."
    loss: str = "loss."

    @property
    def is_pretraining(self) -> bool:
        """Whether this is a student or a teacher, which are stored without a landmark CNN."""
        return self.container in ("student", "teacher")

    def named(self, state: PublishedState) -> dict[str, Tensor]:
        """Return a network's tensors under their published names."""
        return {
            getattr(self, part) + name: tensor
            for part in ("backbone", "loss", "head")
            for name, tensor in getattr(state, part).items()
        }


LAYOUTS = {
    None: PublishedLayout(),
    "teacher": PublishedLayout("teacher", "backbone.", "head.", "backbone.loss."),
    "student": PublishedLayout("student", "module.backbone.", "module.head.", "module.backbone.loss."),
}
"""Layouts as published: finetuned networks are flat, the student of pretraining was under DDP."""


def published_state(checkpoint: Mapping[str, Any], role: Role = "teacher") -> PublishedState:
    """Strip wrappers' prefixes from a published checkpoint, and separate backbone and heads.

    Args:
        checkpoint: what `read_checkpoint` returned: a pretraining checkpoint, a flat state, or a flat state under
            `state_dict` or `model`.
        role: which network of a pretraining checkpoint; a flat state has only one.

    Raises:
        CheckpointError: there are no tensors.
    """
    _, tensors = network_tensors(checkpoint, role)
    state = PublishedState()
    for name, tensor in tensors.items():
        _, part, inner = split_name(name)
        getattr(state, part)[inner] = tensor
    return state


def network_tensors(checkpoint: Mapping[str, Any], role: Role = "teacher") -> tuple[str | None, dict[str, Tensor]]:
    """Return a network's key in the dictionary (None: flat), and its tensors by full name.

    Raises:
        CheckpointError: there are no tensors.
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
    """Split a published name into prefix, part of `PublishedState` and name in that part.

    Example: `module.backbone.loss.weight` is `module.backbone.loss.`, `loss`, `weight`.
    """
    inner = name
    while inner.startswith(_WRAPPERS):
        inner = inner.split(".", 1)[1]
    part = next((part for part in ("head", "loss") if inner.startswith(f"{part}.")), "backbone")
    inner = inner.removeprefix(f"{part}.") if part != "backbone" else inner
    return name.removesuffix(inner), part, inner


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy all of a module's tensors from a state.

    Args:
        module: receives values in place; its dtype and device stay.
        state: name to tensor; further names are ignored, since a published file holds other networks too.

    Raises:
        CheckpointError: before anything is copied, naming the tensors that are missing or differ in shape.
    """
    module.load_state_dict({name: state[name] for name in check_weights(module, state)})


def check_weights(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names that `load_weights` would copy; the module may be on device `meta`.

    Raises:
        CheckpointError: as `load_weights`.
    """
    own = module.state_dict()
    lines = [
        f"{name}: {list(state[name].shape)} in the checkpoint, {list(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    lines += [
        f"{name}: absent from the checkpoint, {list(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name not in state
    ]
    if lines:
        unexpected = [name for name in state if name not in own]
        raise CheckpointError(
            f"weights for {type(module).__name__}",
            found=f"{len(lines)} of {len(own)} tensors do not match\n    " + "\n    ".join(_shortened(lines)),
            expected="every tensor of the model, in the same shape; unexpected tensors: "
            + (_listed(unexpected) or "none"),
            fix="build the model in the size of the checkpoint",
        )
    return list(own)


def read_checkpoint(uri: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU: safetensors by that file extension, else torch's format.

    Nothing in the file is executed: besides tensors and plain containers only the argument
    namespace and NumPy scalars that the released code stores are allowed.

    Args:
        uri: a path or URI.

    Raises:
        CheckpointError: the file is missing, damaged, holds other objects, or is no dictionary.
    """
    uri = str(uri)
    if not filesystem.exists(uri):
        raise CheckpointError(
            uri, found="no such file", expected="a checkpoint (.pth, .pt or .safetensors)", fix="correct the path"
        )
    try:
        with filesystem.local_file(uri) as path:
            is_safetensors = path.endswith(".safetensors")
            content: Any = load_file(path) if is_safetensors else _read_torch(path)
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
    """Return the error for a file that a library could not read."""
    return CheckpointError(
        uri,
        found=f"{filesystem.file_size(uri):,} bytes that cannot be read: {_first_line(error)}",
        expected="a complete checkpoint",
        fix="copy or download the file again, and compare its size with the original's",
    )


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Hash names and values, to recognize the same weights in any file."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        hashed.update(name.encode())
        # As bytes: NumPy has no bfloat16, and cannot view a 0-d array.
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _read_torch(path: str) -> Any:
    with open(path, "rb") as file:
        return load_torch(file)


def _refused(uri: str, error: pickle.UnpicklingError) -> CheckpointError:
    # Not torch's own message: it recommends the option that would run the code.
    name = re.search(r"GLOBAL (\S+)", str(error))
    found = f"{filesystem.file_size(uri):,} bytes of pickled content, damaged or not plain values"
    if name is not None:
        is_code = not name[1].startswith("torch.")
        found = f"the object {name[1]}, which " + ("could run code when loaded" if is_code else "is no plain tensor")
    return CheckpointError(
        uri,
        found=found,
        expected="tensors, numbers, strings, lists and dictionaries",
        fix="if you trust its origin, load it elsewhere and save only the state_dict()",
    )


def _first_line(error: Exception) -> str:
    """Return type and first sentence; libraries append advice for their own developers."""
    sentence = str(error).split("\n")[0].split(". ")[0]
    return f"{type(error).__name__} {sentence}".strip()


def _shortened(lines: list[str]) -> list[str]:
    rest = [f"… and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return [line[:_MAX_CHARACTERS] for line in lines[:_MAX_LINES]] + rest


def _listed(names: list[str]) -> str:
    rest = f" … and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + rest
