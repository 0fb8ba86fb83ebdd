"""Published checkpoints into weights of ours and back, with an account of every name.

Names and shapes of published checkpoints are known (tests/golden/c0_full_size); the files
themselves were never at hand. So anything unforeseen is told or refused, never passed over.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import (
    IMAGE_SIDE,
    PUBLISHED_HEAD_DIM,
    Architecture,
    infer_architecture,
)
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PARTS,
    PublishedLayout,
    PublishedState,
    check_weights,
    network_tensors,
    split_name,
)

_SHOWN = 4


@dataclass(frozen=True)
class Conversion:
    """Weights, and what became of everything in the file they are from.

    Args:
        weights: what was made.
        missing: what the file lacks, and what that means.
        ignored: what of the file was left out, and why.
        assumed: what no shape tells.
    """

    weights: NetworkWeights
    missing: Mapping[str, str]
    ignored: Mapping[str, str]
    assumed: str = ""

    def lines(self) -> list[str]:
        """The account for people."""
        state = self.weights.state
        used = self.weights.layout.named(state)
        numbers = sum(tensor.numel() for tensor in used.values())
        lines = [f"source: {self.weights.source}", *self.weights.architecture.lines()]
        for rows, what in (
            (state.head.get("last_layer.weight_v"), "prototypes"),
            (state.loss.get("weight"), "classes"),
        ):
            if rows is not None:
                lines.append(f"{what}: {rows.shape[0]:,}")
        if self.assumed:
            lines.append(f"assumed, as no shape tells: {self.assumed}")
        lines.append(f"used: {_names([*used])}: {numbers:,} numbers")
        for title, entries in (("missing", self.missing), ("ignored", self.ignored)):
            lines += [f"{title}: {names}: {reason}" for names, reason in entries.items()]
        return lines


def from_published(
    checkpoint: Mapping[str, Any],
    source: str,
    *,
    role: Literal["teacher", "student"] = "teacher",
    head_dim: int = PUBLISHED_HEAD_DIM,
    grid: bool = False,
    heads: bool = False,
) -> Conversion:
    """A published checkpoint as weights of ours.

    Args:
        checkpoint: what `read_checkpoint` returned.
        source: the file, for messages and the weights' header.
        role: which network of a pretraining checkpoint.
        head_dim: width of an attention head.
        grid: whether the transformer was trained on plain grid patches.
        heads: keep DINO head and class weight.

    Raises:
        CheckpointError: it is of another architecture, tensors are missing or contradict each
            other, or names have different prefixes.
    """
    container, tensors = network_tensors(checkpoint, role)
    split = {name: split_name(name) for name in tensors}
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}, "loss": {}}
    for name, (_, part, inner) in split.items():
        parts[part][inner] = tensors[name]
    architecture = infer_architecture(parts["backbone"], source, head_dim=head_dim, grid=grid)
    own = _own_names(architecture, parts["backbone"])
    unknown = [
        n for n, (_, part, inner) in split.items() if part == "backbone" and inner not in own
    ]
    layout = _layout(container, [split[name] for name in split if name not in unknown], source)
    ignored: dict[str, str] = {}
    if unknown:
        ignored[_names(unknown)] = (
            "no part of a landmark CNN, which is all that this file has of ours"
            if architecture.transformer is None
            else "no part of fViT or Part fViT"
            + (", whose landmark CNN --grid leaves out" if grid else "")
        )
    state = PublishedState({name: parts["backbone"][name] for name in own})
    if heads:
        state = replace(state, head=parts["head"], loss=parts["loss"])
    else:
        ignored |= _heads_left_out(parts, unused=layout.is_pretraining)
    ignored |= _other_keys(checkpoint, container)
    origin = f"{source}, {container}" if layout.is_pretraining else source
    weights = NetworkWeights(architecture, state, origin, layout)
    assumed = f"images of {IMAGE_SIDE} px, RGB in [-1, 1]"
    if architecture.transformer is not None:
        assumed = f"heads of {head_dim}, tokens from {'a grid' if grid else 'landmarks'}, {assumed}"
    return Conversion(weights, _missing(architecture), ignored, assumed)


def conversion_of(weights: NetworkWeights, *, heads: bool) -> Conversion:
    """The account of weights that are ours already.

    Args:
        weights: of a run or a weights file.
        heads: keep DINO head and class weight.
    """
    parts = {"head": weights.state.head, "loss": weights.state.loss}
    ignored = {} if heads else _heads_left_out(parts, unused=weights.layout.is_pretraining)
    kept = weights if heads else weights.without_heads()
    return Conversion(kept, _missing(weights.architecture), ignored)


def with_landmark_cnn(conversion: Conversion, other: NetworkWeights) -> Conversion:
    """The same weights with the landmark CNN of another file, which pretraining had frozen.

    Args:
        conversion: of a transformer that was trained on landmarks.
        other: weights with the landmark CNN.

    Raises:
        CheckpointError: there is no landmark CNN in it or no place for one, or it has another
            number of landmarks.
    """
    weights = conversion.weights
    ours, theirs = weights.architecture, other.architecture
    wanted = None if ours.grid or ours.landmark_cnn else f"{ours.num_tokens} landmarks"
    offered = f"{theirs.num_tokens} landmarks" if theirs.landmark_cnn else None
    if wanted is None or wanted != offered:
        why = "reads a grid" if ours.grid else "has a landmark CNN"
        raise CheckpointError(
            other.source,
            found=f"a landmark CNN of {offered}" if offered else "no landmark CNN",
            expected=f"one of {wanted}" if wanted else f"none, as {weights.source} {why}",
            fix="name the stage-1 checkpoint that the transformer was trained with"
            if wanted
            else "leave out --landmarks",
        )
    cnn = {n: v for n, v in other.state.backbone.items() if n.startswith(LANDMARK_PARTS)}
    joined = replace(
        weights,
        architecture=replace(
            ours,
            landmark_cnn=theirs.landmark_cnn,
            landmark_cnn_width=theirs.landmark_cnn_width,
        ),
        state=replace(weights.state, backbone=weights.state.backbone | cnn),
        source=f"{weights.source}; landmark CNN: {other.source}",
    )
    return replace(conversion, weights=joined, missing=_missing(joined.architecture))


def write_published(uri: str, weights: NetworkWeights) -> dict[str, str]:
    """Write weights as a published checkpoint, in the layout that they came from or would have.

    Returns:
        What was left out of it, and why.

    Raises:
        DataError: the place cannot be written to.
    """
    layout, state = weights.layout, weights.state
    left_out: dict[str, str] = {}
    if layout.is_pretraining and weights.architecture.landmark_cnn is not None:
        backbone = {n: v for n, v in state.backbone.items() if not n.startswith(LANDMARK_PARTS)}
        state = replace(state, backbone=backbone)
        left_out["stn.*, output_layer.*"] = (
            "the landmark CNN, which published pretraining checkpoints keep in their stage-1 file"
        )
    tensors = layout.named(state)
    buffer = io.BytesIO()  # torch's own writer hides what goes wrong with a file
    torch.save(tensors if layout.container is None else {layout.container: tensors}, buffer)
    with filesystem.atomic_write(uri) as file:
        file.write(buffer.getbuffer())
    return left_out


def _own_names(architecture: Architecture, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the architecture's parts, all of which the state has in the right shape.

    Raises:
        CheckpointError: names are missing or have another shape.
    """
    with torch.device("meta"):
        modules: list[nn.Module] = []
        if architecture.transformer is not None:
            modules.append(architecture.build_transformer())
        if architecture.landmark_cnn is not None:
            modules.append(architecture.build_landmark_cnn())
    own = {name for module in modules for name in check_weights(module, state).used}
    return [name for name in state if name in own]


def _layout(
    container: str | None, split: Iterable[tuple[str, str, str]], source: str
) -> PublishedLayout:
    """What stands before the names of each part.

    Raises:
        CheckpointError: two names of one part have different prefixes.
    """
    prefixes: dict[str, str] = {}
    for prefix, part, inner in split:
        if (other := prefixes.setdefault(part, prefix)) != prefix:
            raise CheckpointError(
                source,
                found=f"names that begin with {other!r} and, as {prefix + inner}, with {prefix!r}",
                expected="one prefix for all names of a network",
                fix="it seems to hold two networks: save the one that is wanted by itself",
            )
    return PublishedLayout(container, **prefixes)


def _heads_left_out(parts: Mapping[str, Mapping[str, Tensor]], *, unused: bool) -> dict[str, str]:
    left_out = {}
    if parts["head"]:
        names = _names([f"head.{name}" for name in parts["head"]])
        left_out[names] = "DINO head, of use in pretraining alone; --heads keeps it"
    for name, weight in parts["loss"].items():
        left_out[f"loss.{name} {list(weight.shape)}"] = (
            "class weight that pretraining carries and never uses; --heads keeps it"
            if unused
            else "class weight, of use with the same classes alone; --heads keeps it"
        )
    return left_out


def _other_keys(checkpoint: Mapping[str, Any], container: str | None) -> dict[str, str]:
    """Keys beside the network."""
    found: dict[str, str] = {}
    rest = []
    for key, value in checkpoint.items():
        if key in ("student", "teacher") and key != container and isinstance(value, Mapping):
            found[key] = f"the other network; --role {key} takes it"
        elif key != container and (container is not None or not isinstance(value, Tensor)):
            rest.append(str(key))
    if rest:
        found[", ".join(rest)] = "state of training, not of the network"
    return found


def _missing(architecture: Architecture) -> dict[str, str]:
    if architecture.transformer is None:
        return {"transformer": "good for landmarks.weights=, not to embed faces"}
    if architecture.landmark_cnn is None and not architecture.grid:
        return {
            "landmark CNN (stn.*, output_layer.*)": "needed to embed faces, not to start a "
            "finetuning; --landmarks STAGE_1 adds it, --grid says that there is none"
        }
    return {}


def _names(names: Sequence[str]) -> str:
    """Some names: all, or the first ones and how many more."""
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
