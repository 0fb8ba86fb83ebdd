"""Export a face embedder for other programs: torch.export, ONNX, or a weights file.

Each file is verified before it is written: loaded and run on synthetic faces, it has to give the
embeddings of our own network. Its metadata name image side, range, color order and alignment.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.models.checkpoints.safetensors_file import (
    NetworkWeights,
    describe_network,
    encode_weights,
    require_class_token,
)
from lafs_ray.models.checkpoints.state_dicts import published_state
from lafs_ray.models.checkpoints.timm_names import from_timm
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.landmark_cnn import normalize_pixels
from lafs_ray.synthetic.datasets import contact_sheet

Input = Literal["float32", "uint8"]
Run = Callable[[Tensor], Tensor]

FILES = {
    "safetensors": "embedder.safetensors",
    "timm": "embedder_timm.safetensors",
    "onnx": "embedder.onnx",
    "torch_export": "embedder.pt2",
}
HUGGING_FACE = "huggingface"
TOLERANCE = 1e-4
"""Largest allowed difference of an embedding, relative to its largest absolute value.

Sums in another order give up to 1e-6. Errors, on the same networks, give more: colors swapped 0.1, half the input range
0.05, half a pixel 1e-3.
"""

_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18  # the exporter's default; GridSample needs 16
_INPUTS = {
    "float32": "images: float32 [batch, 3, 112, 112] RGB in [-1, 1]",
    "uint8": "images: uint8 [batch, 112, 112, 3] RGB 0…255; scaled to [-1, 1] inside",
}
_METADATA_FILE = "lafs_ray.json"
_NUM_FACES = 5


class ExportedEmbedder(nn.Module):
    """The traced module: the embedder, and for uint8 input the conversion of pixels.

    Args:
        network: takes [B, 3, S, S] in [-1, 1].
        kind: type of the input.
    """

    def __init__(self, network: FaceEmbedder, kind: Input) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, images: Tensor) -> Tensor:
        """Images of type `kind` to embeddings [B, D]."""
        if self.kind == "uint8":
            images = normalize_pixels(images.permute(0, 3, 1, 2))
        return self.network(images)  # type: ignore[no-any-return]


def require_format(name: str) -> None:
    """Check that a format is known and its packages are installed.

    Raises:
        ConfigError: otherwise, with the packages to install.
    """
    if name not in FILES:
        known = ", ".join([*FILES, HUGGING_FACE])
        raise ConfigError("--formats", found=repr(name), expected=f"some of {known}", fix="correct it")
    absent = [p for p in _EXTRA if name == "onnx" and importlib.util.find_spec(p) is None]
    if absent:
        raise ConfigError(
            "format onnx",
            found=f"no package {', '.join(absent)}",
            expected=f"{', '.join(_EXTRA)}, to write the file and to verify it",
            fix="pip install 'lafs-ray[export]' (in a checkout: pip install -e '.[export]')",
        )


def export_embedder(
    weights: NetworkWeights, uri: str, name: str, *, kind: Input = "float32", tolerance: float = TOLERANCE
) -> float:
    """Write one file, after verifying its embeddings against our network's.

    Args:
        weights: of a network that embeds whole faces.
        uri: the file to write.
        name: the format, a key of `FILES`.
        kind: type of the input; a weights file has none.
        tolerance: largest difference allowed, see `TOLERANCE`.

    Returns:
        The largest difference found.

    Raises:
        CheckpointError: the file's embeddings differ, or the weights lack a part.
        ConfigError: the format is unknown or needs packages that are not installed.
    """
    require_format(name)
    network = weights.embedder().requires_grad_(requires_grad=False)
    module = ExportedEmbedder(network, "float32" if name in ("safetensors", "timm") else kind)
    header = {
        **describe_network(weights),
        "input": _INPUTS[kind],
        "output": "embedding: float32 [batch, embedding_dim], not normalized",
    }
    content, run = _MAKERS[name](module, weights, header)
    difference = largest_difference(module, run)
    if not difference <= tolerance:
        raise CheckpointError(
            f"{uri} (not written)",
            found=f"embeddings that differ by {difference:.1e} of the largest value",
            expected=f"at most {tolerance:.0e}",
            fix="report it with the versions of torch, onnx and onnxruntime",
        )
    with filesystem.atomic_write(uri) as file:
        file.write(content)
    return difference


@torch.inference_mode()
def largest_difference(module: ExportedEmbedder, run: Run) -> float:
    """Compare two embedders on synthetic faces, one by one and as a batch.

    Returns:
        The largest absolute difference, relative to the largest absolute value; NaN if the other embedder gives NaN.

    Raises:
        CheckpointError: our own network's embeddings are not finite.
    """
    faces = contact_sheet(0, range(_NUM_FACES), 1)
    images = _as_input(faces.reshape(_NUM_FACES, IMAGE_SIZE, IMAGE_SIZE, 3), module.kind)
    expected = module(images)
    if not expected.isfinite().all():
        raise CheckpointError(
            "embeddings of synthetic faces",
            found="nan or infinity, from the network to export",
            expected="finite numbers",
            fix="the weights are damaged or have diverged: use another checkpoint",
        )
    found = torch.stack([run(images), torch.cat([run(image[None]) for image in images])])
    return float((found - expected).abs().max() / expected.abs().max())


def _as_input(faces: NDArray[np.uint8], kind: Input) -> Tensor:
    pixels = torch.from_numpy(faces)
    return pixels if kind == "uint8" else normalize_pixels(pixels.permute(0, 3, 1, 2))


def _trace(module: ExportedEmbedder) -> torch.export.ExportedProgram:
    # Two faces: a batch of one would become a constant.
    example = _as_input(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8), module.kind)
    # torch 2.6 requires an upper bound.
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=2**31 - 1)}}
    return torch.export.export(module, (example,), dynamic_shapes=batch)


def _safetensors(module: ExportedEmbedder, weights: NetworkWeights, header: Mapping[str, str]) -> tuple[bytes, Run]:
    del module, header  # the file has its own description
    content = encode_weights(weights.without_heads())
    state = published_state(load_safetensors(content))
    again = NetworkWeights(weights.architecture, state, weights.source)
    return content, again.embedder()


def _timm(module: ExportedEmbedder, weights: NetworkWeights, header: Mapping[str, str]) -> tuple[bytes, Run]:
    del module, header  # the file has its own description
    require_class_token(weights)
    content, size = encode_weights(weights.without_heads(), "timm"), weights.architecture.transformer
    assert size is not None, "embedders have a transformer"
    state = published_state(from_timm(load_safetensors(content), size))
    return content, NetworkWeights(weights.architecture, state, weights.source).embedder()


def _torch_export(module: ExportedEmbedder, weights: NetworkWeights, header: Mapping[str, str]) -> tuple[bytes, Run]:
    del weights
    buffer = io.BytesIO()
    torch.export.save(_trace(module), buffer, extra_files={_METADATA_FILE: json.dumps(header)})
    buffer.seek(0)
    return buffer.getvalue(), torch.export.load(buffer).module()


def _onnx(module: ExportedEmbedder, weights: NetworkWeights, header: Mapping[str, str]) -> tuple[bytes, Run]:
    del weights
    traced = _trace(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch's exporter
            program: Any = torch.onnx.export(
                traced,
                input_names=["images"],
                output_names=["embedding"],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    # torch 2.6 cannot translate the network to ONNX operators.
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            "format onnx",
            found=f"torch {torch.__version__}, whose exporter failed: {str(error).splitlines()[0]}",
            expected="a torch that exports this network, as 2.13 does",
            fix="install a newer torch, or leave onnx out of --formats",
        ) from error
    program.model.metadata_props.update(header)
    content: bytes = program.model_proto.SerializeToString()
    session = importlib.import_module("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return content, run


_MAKERS: dict[str, Callable[[ExportedEmbedder, NetworkWeights, Mapping[str, str]], tuple[bytes, Run]]] = {
    "safetensors": _safetensors,
    "timm": _timm,
    "onnx": _onnx,
    "torch_export": _torch_export,
}
