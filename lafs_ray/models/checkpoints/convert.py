"""Convert published checkpoints to weights of ours and back, with a report on every tensor's name.

Names and shapes of published checkpoints are known (tests/golden/c0_full_size), the files themselves were not
available. So every unexpected name is reported or refused, never dropped.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.train import TIMM_PREFIX
from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import Architecture, infer_architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, require_class_token
from lafs_ray.models.checkpoints.state_dicts import (
    LANDMARK_PREFIXES,
    PublishedLayout,
    Role,
    check_weights,
    network_tensors,
    published_state,
    split_name,
)
from lafs_ray.models.landmark_template import TEMPLATE

_MAX_NAMES = 4
# Of a published file that we wrote: shapes do not determine the width of a head.
_HEAD_DIM = "lafs_ray.head_dim"


@dataclass(frozen=True)
class Conversion:
    """Converted weights and a report on the file they come from.

    Args:
        weights: the result.
        missing: parts that the file lacks, and the consequence.
        ignored: names that were left out, and why.
        assumed: what shapes cannot determine.
    """

    weights: NetworkWeights
    missing: Mapping[str, str]
    ignored: Mapping[str, str]
    assumed: str = ""

    def lines(self) -> list[str]:
        """Return the report, one line for each subject."""
        state = self.weights.state
        used = self.weights.layout.named(state)
        numbers = sum(tensor.numel() for tensor in used.values())
        lines = [f"source: {self.weights.source}", *self.weights.architecture.lines()]
        if (rows := state.head.get("last_layer.weight_v")) is not None:
            lines.append(f"prototypes: {rows.shape[0]:,}")
        if (rows := state.loss.get("weight")) is not None:
            lines.append(f"classes: {rows.shape[0]:,}")
        if self.assumed:
            lines.append(f"assumed, as shapes do not determine it: {self.assumed}")
        lines.append(f"used: {_names([*used])}: {numbers:,} numbers")
        for title, entries in (("missing", self.missing), ("ignored", self.ignored)):
            lines += [f"{title}: {names}: {reason}" for names, reason in entries.items()]
        return lines


def from_published(
    checkpoint: Mapping[str, Any],
    source: str,
    *,
    role: Role = "teacher",
    head_dim: int | None = None,
    grid: bool = False,
    heads: bool = False,
) -> Conversion:
    """Convert a published checkpoint to weights of ours.

    Args:
        checkpoint: what `read_checkpoint` returned.
        source: the file, for messages and the weights' header.
        role: which network of a pretraining checkpoint.
        head_dim: width of an attention head; None: as the file records it, else as `infer_architecture` assumes.
        grid: whether the transformer was trained on plain grid patches.
        heads: keep DINO head and class weight.

    Raises:
        CheckpointError: it is of another architecture, tensors are missing or contradict each other, or names have
            different prefixes.
    """
    container, tensors = network_tensors(checkpoint, role)
    recorded = _recorded_head_dim(checkpoint if container is None else checkpoint[container])
    head_dim = recorded if head_dim is None else head_dim
    state = published_state(checkpoint, role)
    architecture = infer_architecture(state.backbone, source, head_dim=head_dim, grid=grid)
    own = _own_names(architecture, state.backbone)
    split = {name: split_name(name) for name in tensors}
    unknown = [n for n, (_, part, name) in split.items() if part == "backbone" and name not in own]
    layout = _layout(container, [split[name] for name in split if name not in unknown], source)
    ignored: dict[str, str] = {}
    if unknown:
        ignored[_names(unknown)] = (
            "no part of a landmark CNN, the only network of ours in this file"
            if architecture.transformer is None
            else "no part of fViT or Part fViT" + (", whose landmark CNN --grid leaves out" if grid else "")
        )
    state = replace(state, backbone={name: state.backbone[name] for name in own})
    origin = f"{source}, {container}" if layout.is_pretraining else source
    weights = NetworkWeights(architecture, state, origin, layout)
    if not heads:
        ignored |= _ignored_heads(weights)
        weights = weights.without_heads()
    ignored |= _other_keys(checkpoint, container)
    assumed = f"images of {IMAGE_SIZE} px, RGB in [-1, 1]"
    if architecture.transformer is not None:
        heads_of = f"heads of {architecture.transformer.head_dim}"
        if recorded == architecture.transformer.head_dim:
            heads_of += " (recorded in the file)"
        assumed = f"{heads_of}, tokens from {'a grid' if grid else 'landmarks'}, {assumed}"
    return Conversion(weights, _missing(architecture), ignored, assumed)


def report_conversion(weights: NetworkWeights, *, heads: bool) -> Conversion:
    """Report on weights of a run or a weights file.

    Args:
        weights: as they were read.
        heads: keep DINO head and class weight.
    """
    missing = _missing(weights.architecture)
    if heads:
        return Conversion(weights, missing, {})
    return Conversion(weights.without_heads(), missing, _ignored_heads(weights))


def add_landmark_cnn(conversion: Conversion, other: NetworkWeights) -> Conversion:
    """Add the landmark CNN of another file, the one that was frozen in pretraining.

    Args:
        conversion: of a transformer that was trained on landmarks.
        other: weights with the landmark CNN.

    Raises:
        CheckpointError: there is no landmark CNN in `other`, the transformer needs none, or it has another number of
            landmarks.
    """
    weights = conversion.weights
    ours, theirs = weights.architecture, other.architecture
    needed = None if ours.grid or ours.landmark_cnn else f"{ours.num_tokens} landmarks"
    found = f"{theirs.num_tokens} landmarks" if theirs.landmark_cnn else None
    if needed is None or needed != found:
        why = "reads a grid" if ours.grid else "has a landmark CNN"
        raise CheckpointError(
            other.source,
            found=f"a landmark CNN of {found}" if found else "no landmark CNN",
            expected=f"one of {needed}" if needed else f"none, as {weights.source} {why}",
            fix="name the stage-1 checkpoint that the transformer was trained with"
            if needed
            else "leave out --landmarks",
        )
    cnn = {n: v for n, v in other.state.backbone.items() if n.startswith(LANDMARK_PREFIXES)}
    joined = replace(
        weights,
        architecture=replace(
            ours,
            landmark_cnn=theirs.landmark_cnn,
            landmark_cnn_width=theirs.landmark_cnn_width,
            landmark_scaling=theirs.landmark_scaling,
        ),
        state=replace(weights.state, backbone=weights.state.backbone | cnn),
        source=f"{weights.source}; landmark CNN: {other.source}",
    )
    return replace(conversion, weights=joined, missing=_missing(joined.architecture))


def write_published(uri: str, weights: NetworkWeights) -> dict[str, str]:
    """Write weights as a published checkpoint, in the layout that the released code uses.

    Returns:
        Names that were left out, and why.

    Raises:
        CheckpointError: the released code cannot have such landmarks, such a transformer, or such an embedding.
        DataError: the place cannot be written to.
    """
    layout, state = weights.layout, weights.state
    size = weights.architecture.transformer
    if size is not None and size.timm is not None:
        raise CheckpointError(
            weights.source,
            found=f"a transformer of {TIMM_PREFIX}{size.timm}",
            expected="the fViT, as published checkpoints have no names for other blocks",
            fix="write a weights file, OUT.safetensors, or timm's own names: lafs export --formats timm",
        )
    require_class_token(weights)
    left_out: dict[str, str] = {}
    if layout.is_pretraining and weights.architecture.landmark_cnn is not None:
        backbone = {n: v for n, v in state.backbone.items() if not n.startswith(LANDMARK_PREFIXES)}
        state = replace(state, backbone=backbone)
        left_out["stn.*, output_layer.*"] = (
            "the landmark CNN, which published pretraining checkpoints keep in their stage-1 file"
        )
    elif weights.architecture.landmark_cnn == TEMPLATE or weights.architecture.landmark_scaling == "direct":
        raise CheckpointError(
            weights.source,
            found="landmarks that are not scaled to 0…111 pixels"
            if weights.architecture.landmark_cnn != TEMPLATE
            else "template landmarks",
            expected="a landmark CNN of the published form, as the released code scales its landmarks",
            fix="write a weights file: OUT.safetensors",
        )
    tensors: OrderedDict[str, Tensor] = OrderedDict(layout.named(state))
    if size is not None:
        # What a module's state_dict() has beside its tensors: load_state_dict, strict too, passes it by.
        tensors._metadata = {_HEAD_DIM: size.head_dim}  # type: ignore[attr-defined]
    buffer = io.BytesIO()  # torch's own file writer hides the cause of an error
    torch.save(tensors if layout.container is None else {layout.container: tensors}, buffer)
    with filesystem.atomic_write(uri) as file:
        file.write(buffer.getbuffer())
    return left_out


def _recorded_head_dim(state: Mapping[str, Any]) -> int | None:
    """Return the width of a head that `write_published` recorded; None: another program wrote the file."""
    metadata = getattr(state, "_metadata", None)
    found = metadata.get(_HEAD_DIM) if isinstance(metadata, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def _own_names(architecture: Architecture, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the architecture's tensors, in the state's order.

    Raises:
        CheckpointError: tensors are missing or have another shape.
    """
    with torch.device("meta"):
        modules: list[nn.Module] = []
        if architecture.transformer is not None:
            modules.append(architecture.build_transformer())
        if architecture.landmark_cnn is not None:
            modules.append(architecture.build_landmark_cnn())
    own = {name for module in modules for name in check_weights(module, state)}
    return [name for name in state if name in own]


def _layout(container: str | None, split: Iterable[tuple[str, str, str]], source: str) -> PublishedLayout:
    """Find the prefix of each part's names.

    Raises:
        CheckpointError: a part has two prefixes.
    """
    prefixes: dict[str, str] = {}
    for prefix, part, inner in split:
        if (other := prefixes.setdefault(part, prefix)) != prefix:
            raise CheckpointError(
                source,
                found=f"names that begin with {other!r} and, as {prefix + inner}, with {prefix!r}",
                expected="one prefix for all names of a network",
                fix="the file seems to hold two networks: save the one you need separately",
            )
    return PublishedLayout(container, **prefixes)


def _ignored_heads(weights: NetworkWeights) -> dict[str, str]:
    ignored = {}
    if weights.state.head:
        names = _names([f"head.{name}" for name in weights.state.head])
        ignored[names] = "DINO head, used in pretraining only; --heads keeps it"
    for name, weight in weights.state.loss.items():
        ignored[f"loss.{name} {list(weight.shape)}"] = (
            "class weight, which pretraining never uses; --heads keeps it"
            if weights.layout.is_pretraining
            else "class weight, useful with the same classes only; --heads keeps it"
        )
    return ignored


def _other_keys(checkpoint: Mapping[str, Any], container: str | None) -> dict[str, str]:
    """Report the checkpoint's other keys."""
    found: dict[str, str] = {}
    rest = []
    for key, value in checkpoint.items():
        if key in ("student", "teacher") and key != container and isinstance(value, Mapping):
            found[key] = f"the other network; --role {key} takes it"
        elif key != container and (container is not None or not isinstance(value, Tensor)):
            rest.append(str(key))
    if rest:
        found[", ".join(rest)] = "training state, not part of the network"
    return found


def _missing(architecture: Architecture) -> dict[str, str]:
    if architecture.transformer is None:
        return {"transformer": "usable as landmarks.weights=, not to embed faces"}
    if architecture.landmark_cnn is None and not architecture.grid:
        return {
            "landmark CNN (stn.*, output_layer.*)": "needed to embed faces, not to start "
            "finetuning; --landmarks STAGE_1 adds it, --grid is for networks without one"
        }
    return {}


def _names(names: Sequence[str]) -> str:
    """Join names; of many the first few, and how many more."""
    shown = ", ".join(names[:_MAX_NAMES])
    return shown + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
