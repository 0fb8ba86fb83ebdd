"""A network's architecture: stored in our files, inferred from shapes for published ones.

Shapes determine nearly everything, except heads and their width (only the product is in a shape), landmarks or grid,
and the side of the images; published networks have heads of 64, landmarks, and 112 pixels. A transformer with the
shapes of one of our sizes has the heads of that size. Shape letters: N landmarks, p patch side, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.train import TIMM_PREFIX, Readout, TokenFeatures
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.state_dicts import check_weights
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.fvit import FVIT_SIZES, FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkNetwork, build_landmark_cnn, infer_width
from lafs_ray.models.landmark_head import DIRECT_TENSOR, Scaling
from lafs_ray.models.landmark_template import TEMPLATE, TEMPLATE_TENSOR
from lafs_ray.models.readout import Whitening, readout_dim
from lafs_ray.models.timm_transformer import new_transformer, plain_vit
from lafs_ray.models.tokens import token_dim

PUBLISHED_HEAD_DIM = 64

_QKV = "transformer.layers.{}.0.fn.fn.to_qkv.weight"
_FIX = "give a checkpoint of fViT or Part fViT, or see docs/weights.md"


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters from which a network is built.

    Args:
        num_tokens: N, landmarks or cells of the grid.
        transformer: its size; None where there is only a landmark CNN.
        patch_size: p, in pixels; None without a transformer.
        landmark_cnn: `mobilenetv3`, `timm/<name>` or `template` (fixed positions); None where there is none.
        landmark_cnn_width: factor on its channels.
        landmark_scaling: of its numbers, `span` as published or `direct`.
        grid: whether tokens are the plain grid's, so that no landmark CNN is missing.
        token_features: numbers of a token; published networks read pixels.
        readout: which outputs of the transformer make the embedding.
        whitened_dim: components of the embedding's whitening; None: it has none.
    """

    num_tokens: int
    transformer: FViTSize | None = None
    patch_size: int | None = None
    landmark_cnn: str | None = None
    landmark_cnn_width: float = 1.0
    landmark_scaling: Scaling = "span"
    grid: bool = False
    token_features: TokenFeatures = "pixels"
    readout: Readout = "class"
    whitened_dim: int | None = None

    @property
    def read_dim(self) -> int:
        """Numbers that the readout reads; 0 without a transformer."""
        return readout_dim(self.readout, self.num_tokens, self.transformer.width) if self.transformer else 0

    @property
    def embedding_dim(self) -> int:
        """Numbers of an embedding; 0 without a transformer."""
        return self.whitened_dim or self.read_dim

    def build_transformer(self, init_std: float = 0.02) -> FViT:
        """Build the transformer with new weights; for inference, so without dropout."""
        assert self.transformer is not None
        assert self.patch_size is not None
        numbers = token_dim(self.patch_size, self.token_features)
        return new_transformer(self.transformer, self.num_tokens, numbers, init_std=init_std)

    def build_whitening(self) -> Whitening | None:
        """Build the whitening, unfitted."""
        return None if self.whitened_dim is None else Whitening(self.read_dim, self.whitened_dim)

    def build_landmark_cnn(self) -> LandmarkNetwork:
        """Build the landmark CNN with new weights."""
        assert self.landmark_cnn is not None
        return build_landmark_cnn(self.landmark_cnn, self.num_tokens, self.landmark_cnn_width, self.landmark_scaling)

    def lines(self) -> list[str]:
        """Return a readable summary, one line for each part."""
        tokens = f"{self.num_tokens} landmarks"
        if self.patch_size is not None:
            kind = "cells of a grid" if self.grid else "landmarks"
            tokens = f"{self.num_tokens} {kind}, patches of {self.patch_size} px"
            if self.token_features != "pixels":
                tokens += f", {self.token_features}"
        lines = [f"tokens: {tokens}"]
        if (size := self.transformer) is not None:
            name = "" if size.timm is None else f"{TIMM_PREFIX}{size.timm}, "
            lines.append(
                f"transformer: {name}width {size.width}, depth {size.depth}, "
                f"heads {size.heads} × {size.head_dim}, MLP {size.mlp_width}"
            )
        if self.readout != "class" or self.whitened_dim is not None:
            whitened = "" if self.whitened_dim is None else f", whitened to {self.whitened_dim} components"
            lines.append(f"embedding: readout {self.readout}{whitened}")
        if self.landmark_cnn == TEMPLATE:
            lines.append("landmarks: a template, the same positions in every face")
        elif self.landmark_cnn is not None:
            scaling = "" if self.landmark_scaling == "span" else f", {self.landmark_scaling} landmarks"
            lines.append(f"landmark CNN: {self.landmark_cnn}, width {self.landmark_cnn_width:g}{scaling}")
        return lines


def build_embedder(architecture: Architecture, source: str, *, seed: int = 0, init_std: float = 0.02) -> FaceEmbedder:
    """Build the network that embeds whole faces, with new weights, in eval mode.

    Args:
        architecture: with a transformer, and a landmark CNN unless it reads the grid.
        source: the file it is from, for the message.
        seed: of the new weights.
        init_std: standard deviation of the initial positions and class token.

    Raises:
        CheckpointError: a part is missing.
    """
    if architecture.transformer is None:
        raise CheckpointError(
            source,
            found="only a landmark CNN",
            expected="a transformer as well",
            fix="use this file for landmarks.weights=; embedding needs a trained transformer",
        )
    if architecture.landmark_cnn is None and not architecture.grid:
        raise CheckpointError(
            source,
            found="a transformer on landmarks, without a landmark CNN",
            expected="both: published pretraining checkpoints leave out the CNN",
            fix="convert it again with `lafs convert … --landmarks STAGE_1_CHECKPOINT`",
        )
    torch.manual_seed(seed)
    transformer = architecture.build_transformer(init_std)
    cnn = None if architecture.grid else architecture.build_landmark_cnn()
    assert architecture.patch_size is not None
    options = architecture.token_features, architecture.readout, architecture.build_whitening()
    return FaceEmbedder(transformer, cnn, architecture.patch_size, *options).eval()


_LARGEST = {
    **{"num_tokens": 1 << 16, "patch_size": IMAGE_SIZE, "landmark_cnn_width": 64},
    **{"width": 1 << 16, "depth": 512, "heads": 1024, "head_dim": 1 << 14, "mlp_width": 1 << 18},
}


def require_sizes(architecture: Architecture, source: str) -> None:
    """Check that all sizes are positive and of a network that could exist; it may still be another than the weights'.

    Raises:
        CheckpointError: naming the first that is not.
    """
    sizes = {**vars(architecture), **(vars(architecture.transformer) if architecture.transformer else {})}
    for name, largest in _LARGEST.items():
        value = sizes.get(name)
        if value is not None and not 0 < value <= largest:
            raise CheckpointError(
                f"{source}, architecture", found=f"{name} {value}", expected=f"more than 0, at most {largest}", fix=_FIX
            )
    size = architecture.transformer
    if size is not None and size.timm is not None and size != (named := plain_vit(size.timm).size):
        raise CheckpointError(
            f"{source}, architecture", found=f"{size}", expected=f"{named}, which timm has under this name", fix=_FIX
        )


def require_fit(architecture: Architecture, state: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors are those of an architecture, before a network of its size is built.

    Raises:
        CheckpointError: sizes are impossible, or tensors are missing or of other shapes.
    """
    require_sizes(architecture, source)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if architecture.transformer is not None:
            check_weights(architecture.build_transformer(), state)
        if architecture.landmark_cnn is not None:
            check_weights(architecture.build_landmark_cnn(), state)


def infer_architecture(
    state: Mapping[str, Tensor], source: str, *, head_dim: int | None = None, grid: bool = False
) -> Architecture:
    """Infer an architecture from the shapes of a backbone's tensors.

    Args:
        state: tensors under `PartFViT`'s names; others are ignored.
        source: the file they are from, for messages.
        head_dim: width of an attention head; None: that of our size of these shapes, else as published.
        grid: whether tokens are cells of the plain grid; shapes do not determine it.

    Raises:
        CheckpointError: there is neither a transformer nor a landmark CNN, or their shapes contradict each other.
    """
    landmarks, width = _landmark_cnn(state, source)
    kind = TEMPLATE if TEMPLATE_TENSOR in state else "mobilenetv3"
    scaling: Scaling = "direct" if DIRECT_TENSOR in state else "span"
    if _QKV.format(0) not in state:
        if landmarks is None:
            raise CheckpointError(
                source,
                found="names of neither a transformer nor a landmark CNN: " + ", ".join(sorted(state)[:8]),
                expected="names such as " + _QKV.format(0) + " or stn.features.0.0.weight",
                fix=_FIX,
            )
        return Architecture(landmarks, landmark_cnn=kind, landmark_cnn_width=width, landmark_scaling=scaling)
    size, num_tokens, patch_size = _transformer(state, source, head_dim)
    if landmarks is not None and landmarks != num_tokens:
        raise CheckpointError(
            source,
            found=f"positions for {num_tokens} tokens, and a landmark CNN of {landmarks} landmarks",
            expected="as many landmarks as tokens",
            fix="combine the transformer with the landmark CNN that it was trained with",
        )
    if grid and (IMAGE_SIZE // patch_size) ** 2 != num_tokens:
        raise CheckpointError(
            source,
            found=f"positions for {num_tokens} tokens, patches of {patch_size} px",
            expected=f"({IMAGE_SIZE} // {patch_size})² = {(IMAGE_SIZE // patch_size) ** 2} cells "
            f"of a grid on {IMAGE_SIZE} px",
            fix="leave out --grid: this transformer was trained on landmarks",
        )
    has_cnn = landmarks is not None and not grid
    architecture = Architecture(
        num_tokens,
        size,
        patch_size,
        landmark_cnn=kind if has_cnn else None,
        landmark_cnn_width=width if has_cnn else 1.0,
        landmark_scaling=scaling if has_cnn else "span",
        grid=grid,
    )
    require_sizes(architecture, source)
    return architecture


def _landmark_cnn(state: Mapping[str, Tensor], source: str) -> tuple[int | None, float]:
    """Return the number of landmarks (None: no landmark CNN) and the width."""
    if TEMPLATE_TENSOR in state:
        return _shape(state, TEMPLATE_TENSOR, source, 2)[0], 1.0
    if not any(name.startswith("stn.") for name in state):
        return None, 1.0
    width = infer_width(state)
    if width is None:
        raise CheckpointError(
            source,
            found="a trunk `stn.*` whose channels are not MobileNetV3-Large's at any width",
            expected="the published landmark CNN",
            fix="shapes do not determine other trunks; use the run's own checkpoint",
        )
    return _shape(state, "output_layer.1.weight", source, 2)[0] // 2, width


def _transformer(state: Mapping[str, Tensor], source: str, head_dim: int | None) -> tuple[FViTSize, int, int]:
    """Return size, N and p."""
    _, positions, width = _shape(state, "pos_embedding", source, 3)
    token_dim = _shape(state, "patch_to_embedding.weight", source, 2)[1]
    patch_size = max(math.isqrt(token_dim // 3), 1)
    if 3 * patch_size**2 != token_dim:
        raise CheckpointError(
            f"{source}, patch_to_embedding.weight",
            found=f"tokens of {token_dim} numbers",
            expected="3·p² numbers, p the side of a patch of three colors",
            fix=_FIX,
        )
    inner = _shape(state, _QKV.format(0), source, 2)[0] / 3
    depth = 0
    while _QKV.format(depth) in state:
        depth += 1
    mlp_width = _shape(state, "transformer.layers.0.1.fn.fn.net.0.weight", source, 2)[0]
    if head_dim is None:
        head_dim = _known_head_dim(width, depth, inner, mlp_width)
    if head_dim < 1 or inner % head_dim:
        raise CheckpointError(
            f"{source}, {_QKV.format(0)}",
            found=f"a total head width of {inner:g}, not a multiple of {head_dim}",
            expected="heads × head width; shapes do not determine the two factors",
            fix="set the width of a head: --head-dim",
        )
    size = FViTSize(width, depth, int(inner) // head_dim, head_dim, mlp_width)
    return size, positions - 1, patch_size


def _known_head_dim(width: int, depth: int, inner: float, mlp_width: int) -> int:
    for size in FVIT_SIZES.values():
        if (size.width, size.depth, size.heads * size.head_dim, size.mlp_width) == (width, depth, inner, mlp_width):
            return size.head_dim
    return PUBLISHED_HEAD_DIM


def _shape(state: Mapping[str, Tensor], name: str, source: str, ndim: int) -> tuple[int, ...]:
    shape = tuple(state[name].shape) if name in state else None
    if shape is None or len(shape) != ndim:
        found = "no such name" if shape is None else f"shape {list(shape)}"
        raise CheckpointError(f"{source}, {name}", found=found, expected=f"a tensor of {ndim} dimensions", fix=_FIX)
    return shape
