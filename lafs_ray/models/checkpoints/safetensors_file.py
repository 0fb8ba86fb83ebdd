"""Our weights file: safetensors under the published flat names, with a description in the header.

The header names architecture, input, range, color order and origin. `landmarks.weights=`, finetuning and evaluation
read it, and so can any tool that knows Part fViT's names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lafs_ray import __version__
from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.train import Readout
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.retries import read_error
from lafs_ray.errors import CheckpointError, DataError
from lafs_ray.models.checkpoints.architecture import Architecture, build_embedder, require_fit
from lafs_ray.models.checkpoints.state_dicts import (
    LAYOUTS,
    PublishedLayout,
    PublishedState,
    hash_tensors,
    load_weights,
    published_state,
    read_checkpoint,
    unreadable,
)
from lafs_ray.models.checkpoints.timm_names import from_timm, to_timm
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.readout import WHITENING_PREFIX, Whitening

FORMAT = "1"
Names = Literal["published", "timm"]
_FORMAT_KEY, _CHECKSUM = "lafs_ray_weights", "checksum"


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """A network's tensors and all that is known about them.

    Args:
        architecture: of the network.
        state: backbone (transformer and landmark CNN), and heads where they were kept.
        source: the file they come from, and which network of it.
        layout: where the published checkpoint had them, or would have.
        step: optimizer steps of training; None: unknown.
        seed: initializes an untrained network for comparison.
        init_std: standard deviation of that network's initial positions.
        settings: of the run that trained it; None: unknown.
    """

    architecture: Architecture
    state: PublishedState
    source: str
    layout: PublishedLayout = LAYOUTS[None]
    step: int | None = None
    seed: int = 0
    init_std: float = 0.02
    settings: Mapping[str, Any] | None = None

    def without_heads(self) -> NetworkWeights:
        """Return the backbone alone."""
        return replace(self, state=PublishedState(self.state.backbone))

    def embedder(self, *, trained: bool = True) -> FaceEmbedder:
        """Build the network that embeds faces, in eval mode.

        Args:
            trained: whether the transformer gets its weights; else it stays as initialized, without whitening.

        Raises:
            CheckpointError: a part is missing, or tensors are not of the architecture.
        """
        architecture = self.architecture if trained else replace(self.architecture, whitened_dim=None)
        network = build_embedder(architecture, self.source, seed=self.seed, init_std=self.init_std)
        if trained:
            load_weights(network.transformer, self.state.backbone)
        if network.landmark_cnn is not None:
            load_weights(network.landmark_cnn, self.state.backbone)
        if network.whitening is not None:
            load_weights(network.whitening, part_of(self.state.backbone, WHITENING_PREFIX))
        return network

    def read_by(self, readout: Readout) -> NetworkWeights:
        """Return the same network with another readout, and without whitening."""
        kept = {n: v for n, v in self.state.backbone.items() if not n.startswith(WHITENING_PREFIX)}
        architecture = replace(self.architecture, readout=readout, whitened_dim=None)
        return replace(self, architecture=architecture, state=replace(self.state, backbone=kept))

    def whitened(self, whitening: Whitening) -> NetworkWeights:
        """Return the network with its readout whitened."""
        fitted = {WHITENING_PREFIX + name: tensor for name, tensor in whitening.state_dict().items()}
        architecture = replace(self.architecture, whitened_dim=whitening.matrix.shape[1])
        return replace(
            self, architecture=architecture, state=replace(self.state, backbone={**self.state.backbone, **fitted})
        )


def require_class_token(weights: NetworkWeights) -> None:
    """Check that an embedding is the class token, which other programs read.

    Raises:
        CheckpointError: it is of another readout, or whitened.
    """
    architecture = weights.architecture
    if architecture.readout != "class" or architecture.whitened_dim is not None:
        whitened = "" if architecture.whitened_dim is None else f", whitened to {architecture.whitened_dim} numbers"
        raise CheckpointError(
            weights.source,
            found=f"an embedding of readout {architecture.readout}{whitened}",
            expected="the class token, as other programs read it: they would embed faces otherwise",
            fix="write a weights file (OUT.safetensors), a Hugging Face folder, ONNX or torch_export",
        )


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def describe_network(weights: NetworkWeights) -> dict[str, str]:
    """Describe a network, its input and its output; every exported file carries these entries.

    Keys and values are text, as the headers of safetensors and ONNX require.
    """
    architecture = weights.architecture
    return {
        "lafs_ray_version": __version__,
        "architecture": json.dumps(asdict(architecture)),
        "image_size": str(IMAGE_SIZE),
        "alignment": "insightface: five points to their 112x112 positions",
        "color_order": "rgb",
        "input_range": "[-1, 1]",
        "normalization": "x / 127.5 - 1 for pixels x in 0…255",
        "patch_size": str(architecture.patch_size or ""),
        "embedding_dim": str(architecture.embedding_dim or ""),
        "source": weights.source,
        "step": "" if weights.step is None else str(weights.step),
        "weights_hash": hash_tensors(weights.state.backbone),
    }


def write_weights(uri: str, weights: NetworkWeights) -> None:
    """Write a weights file atomically.

    Raises:
        DataError: the place cannot be written to.
    """
    content = encode_weights(weights)
    with filesystem.atomic_write(uri) as file:
        file.write(content)


def encode_weights(weights: NetworkWeights, names: Names = "published") -> bytes:
    """Return the bytes of a weights file, its tensors under the published names or under timm's."""
    named = LAYOUTS[None].named(weights.state)
    if names == "timm":
        named = to_timm(named, weights.architecture)
    tensors = {
        name: tensor.detach().cpu().clone().contiguous()  # safetensors refuses shared memory
        for name, tensor in named.items()
    }
    header = {_FORMAT_KEY: FORMAT, **describe_network(weights), "published_layout": json.dumps(asdict(weights.layout))}
    header |= {"names": names} if names != "published" else {}
    return save(tensors, {**header, _CHECKSUM: _checksum(tensors, header)})


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Hash names, values and the description, in which one digit can make another network of the same tensors."""
    description = json.dumps({name: text for name, text in header.items() if name != _CHECKSUM}, sort_keys=True)
    return hashlib.blake2b((hash_tensors(tensors) + description).encode(), digest_size=16).hexdigest()


def read_weights(uri: str) -> NetworkWeights | None:
    """Read a weights file.

    Returns:
        None if the file does not exist, or is not a weights file by its name and header; its tensors are not read then.

    Raises:
        CheckpointError: it is safetensors by its name and damaged, or of a newer format.
    """
    if not uri.partition("?")[0].endswith(".safetensors") or not filesystem.exists(uri):
        return None
    header = _read_header(uri)
    if _FORMAT_KEY not in header:
        return None
    if header[_FORMAT_KEY] != FORMAT:
        raise CheckpointError(
            uri,
            found=f"format {header[_FORMAT_KEY]!r} in its header",
            expected=f"a weights file of format {FORMAT!r}",
            fix="convert the original checkpoint again with `lafs convert`",
        )
    try:
        architecture = TypeAdapter(Architecture).validate_json(header["architecture"])
        layout = TypeAdapter(PublishedLayout).validate_json(header["published_layout"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            uri,
            found="an invalid header: " + " ".join(str(error).split())[:200],
            expected="the header that `lafs convert` writes",
            fix="convert the weights again",
        ) from None
    tensors = read_checkpoint(uri)
    if header.get(_CHECKSUM) != _checksum(tensors, header):
        raise CheckpointError(
            uri,
            found="content that does not match the checksum in its header",
            expected="the file as it was written",
            fix="copy the file again, or convert the original checkpoint again",
        )
    if header.get("names") == "timm" and architecture.transformer is not None:
        tensors = from_timm(tensors, architecture.transformer)
    state, source = published_state(tensors), header.get("source", uri)
    require_fit(architecture, state.backbone, uri)
    step = header.get("step", "")
    return NetworkWeights(architecture, state, source, layout, int(step) if step.isdecimal() else None)


def _read_header(uri: str) -> Mapping[str, str]:
    """Read the description in a safetensors file's header; empty where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with filesystem.local_file(uri) as path, safe_open(path, "pt") as file:
            return file.metadata() or {}
    except OSError as error:
        raise read_error(uri, error) from error
    except DataError:
        raise
    except Exception as error:  # safetensors' own exception, which has no place in its stubs
        raise unreadable(uri, error) from None
