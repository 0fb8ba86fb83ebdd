"""Our weights file: safetensors under the published flat names, with its description in the header.

Nobody has to guess what the tensors are for: the header says architecture, input, range and color
order, and where they came from. `landmarks.weights=`, finetuning and evaluation read it, and any
tool that knows Part fViT's names can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save

from lafs_ray import __version__
from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import IMAGE_SIDE, Architecture, build_embedder
from lafs_ray.models.checkpoints.state_dicts import (
    LAYOUTS,
    PublishedLayout,
    PublishedState,
    digest,
    load_weights,
    published_state,
    read_checkpoint,
    unreadable,
)
from lafs_ray.models.embedder import FaceEmbedder

FORMAT = "1"
_FORMAT_KEY = "lafs_ray_weights"


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """A network's tensors and all that is known about them.

    Args:
        architecture: of the network.
        state: backbone (transformer and landmark CNN), and heads where they were kept.
        source: the file they come from, and which network of it.
        layout: where the published checkpoint had them, or would have.
        step: optimizer steps behind them; None: unknown.
        seed: what an untrained network to compare with is drawn from.
        init_std: deviation of that network's positions.
    """

    architecture: Architecture
    state: PublishedState
    source: str
    layout: PublishedLayout = LAYOUTS[None]
    step: int | None = None
    seed: int = 0
    init_std: float = 0.02

    def without_heads(self) -> NetworkWeights:
        """The backbone alone."""
        return replace(self, state=PublishedState(self.state.backbone))

    def embedder(self, *, trained: bool = True) -> FaceEmbedder:
        """The network that embeds faces, in eval mode.

        Args:
            trained: whether the transformer gets its weights; else it stays as drawn from the seed.

        Raises:
            CheckpointError: a part is missing, or tensors are not of the architecture.
        """
        network = build_embedder(
            self.architecture, self.source, seed=self.seed, init_std=self.init_std
        )
        if trained:
            load_weights(network.transformer, self.state.backbone)
        if network.landmark_cnn is not None:
            load_weights(network.landmark_cnn, self.state.backbone)
        return network


def describe_network(weights: NetworkWeights) -> dict[str, str]:
    """A network, what goes into it and what comes out: the words that every file of ours carries.

    Keys and values are text, as the headers of safetensors and ONNX want them.
    """
    architecture = weights.architecture
    return {
        "lafs_ray_version": __version__,
        "architecture": json.dumps(asdict(architecture)),
        "image_size": str(IMAGE_SIDE),
        "alignment": "insightface: five points to their 112x112 positions",
        "color_order": "rgb",
        "input_range": "[-1, 1]",
        "normalization": "x / 127.5 - 1 for pixels x in 0…255",
        "patch_size": str(architecture.patch_size or ""),
        "embedding_dim": str(architecture.transformer.width if architecture.transformer else ""),
        "source": weights.source,
        "step": "" if weights.step is None else str(weights.step),
        "weights_hash": digest(weights.state.backbone),
    }


def write_weights(uri: str, weights: NetworkWeights) -> None:
    """Write a weights file; it is there whole or not at all.

    Raises:
        DataError: the place cannot be written to.
    """
    content = encode_weights(weights)
    with filesystem.atomic_write(uri) as file:
        file.write(content)


def encode_weights(weights: NetworkWeights) -> bytes:
    """The bytes of a weights file."""
    tensors = {
        name: tensor.detach().cpu().clone().contiguous()  # safetensors refuses shared memory
        for name, tensor in LAYOUTS[None].named(weights.state).items()
    }
    header = {
        _FORMAT_KEY: FORMAT,
        **describe_network(weights),
        "published_layout": json.dumps(asdict(weights.layout)),
    }
    return save(tensors, header)


def read_weights(uri: str) -> NetworkWeights:
    """Read a weights file.

    Raises:
        CheckpointError: it is missing, damaged, not a weights file, or of a newer format.
    """
    tensors = read_checkpoint(uri)
    header = read_header(uri)
    if header.get(_FORMAT_KEY) != FORMAT:
        found = header.get(_FORMAT_KEY)
        raise CheckpointError(
            uri,
            found=f"format {found!r} in its header"
            if found
            else "safetensors without lafs_ray's description in the header",
            expected=f"a weights file of lafs_ray, format {FORMAT!r}",
            fix="make one with python jobs/convert_weights.py THIS_FILE OUT.safetensors",
        )
    try:
        architecture = TypeAdapter(Architecture).validate_json(header["architecture"])
        layout = TypeAdapter(PublishedLayout).validate_json(header["published_layout"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            uri,
            found="a header that does not read: " + " ".join(str(error).split())[:200],
            expected="the header that jobs/convert_weights.py writes",
            fix="convert the weights again",
        ) from None
    step = header.get("step", "")
    return NetworkWeights(
        architecture,
        published_state(tensors),
        header.get("source", uri),
        layout,
        int(step) if step.isdecimal() else None,
    )


def has_description(uri: str) -> bool:
    """Whether a file is a weights file by its name and header; its tensors are not read.

    Raises:
        CheckpointError: it is safetensors by its name, and damaged.
    """
    is_safetensors = uri.partition("?")[0].endswith(".safetensors") and filesystem.exists(uri)
    return is_safetensors and _FORMAT_KEY in read_header(uri)


def read_header(uri: str) -> Mapping[str, str]:
    """The description in a safetensors file's header; empty where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with filesystem.local_file(uri) as path, safe_open(path, "pt") as file:
            return file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # safetensors' own exception, which has no place in its stubs
        raise unreadable(uri, error) from None
