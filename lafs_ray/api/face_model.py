"""A network that embeds faces, with its description: loaded from anywhere, checked, applied, saved."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.api.images import as_pixels
from lafs_ray.config.train import TIMM_PREFIX
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.evaluation.embed import normalize
from lafs_ray.evaluation.plots import attention_overlay, landmark_overlay
from lafs_ray.models.checkpoints.architecture import Architecture, build_embedder
from lafs_ray.models.checkpoints.hub_folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    Card,
    is_hub_folder,
    read_hub_folder,
    write_hub_folder,
)
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.models.checkpoints.state_dicts import PublishedState
from lafs_ray.models.fvit import FVIT_SIZES
from lafs_ray.models.readout import WHITENING_PREFIX
from lafs_ray.models.timm_transformer import plain_vit
from lafs_ray.training.checkpoint.inference import convert, inference_device, load_for_inference

_BATCH = 64
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class FaceModel(nn.Module, PyTorchModelHubMixin):
    """A face embedder in eval mode; inputs of its methods are checked by `as_pixels`, which has their arguments.

    Args:
        weights: of a network that embeds whole faces.
    """

    def __init__(self, weights: NetworkWeights) -> None:
        super().__init__()
        self.network = weights.embedder()
        self.architecture, self.source, self.step = weights.architecture, weights.source, weights.step
        self.settings = weights.settings

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, 112, 112], RGB in [-1, 1], to embeddings [B, D], not normalized; differentiable."""
        return self.network(images)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def embed(self, images: Any, *, flip: bool = True, normalized: bool = True, **checks: Any) -> NDArray[np.float32]:
        """Embed faces.

        Args:
            images: see `as_pixels`.
            flip: add the embedding of the mirror image, as the published evaluation does.
            normalized: scale each embedding to length 1, so that products are cosine similarities.
            checks: `color_order`, `value_range` and `resize` of `as_pixels`.

        Returns:
            float32 [B, D].
        """
        pixels = as_pixels(images, **checks)
        parts = [self.network(batch) + (self.network(batch.flip(3)) if flip else 0) for batch in self._batches(pixels)]
        rows = torch.cat(parts).float().cpu().numpy()
        return normalize(rows).astype(np.float32) if normalized else rows

    @torch.inference_mode()
    def landmarks(self, images: Any, **checks: Any) -> NDArray[np.float32]:
        """Return the landmarks of faces, float32 [B, N, 2] in pixels, (x, y).

        Raises:
            ConfigError: the network reads a grid.
        """
        cnn = self.network.landmark_cnn
        if cnn is None:
            raise ConfigError(
                "landmarks",
                found=f"a network on grid patches: {self.source}",
                expected="a network with a landmark CNN",
                fix="load a LAFS run, or a finetuning with landmarks.source=cnn",
            )
        pixels = as_pixels(images, **checks)
        return torch.cat([cnn(batch) for batch in self._batches(pixels)]).float().cpu().numpy()

    @torch.inference_mode()
    def attention(self, images: Any, *, block: int = -1, **checks: Any) -> NDArray[np.float32]:
        """Return the attention weights of a block, float32 [B, heads, n + 1, n + 1]; index 0 is the class token."""
        pixels = as_pixels(images, **checks)
        parts = [self.network.attention(batch, block) for batch in self._batches(pixels)]
        return torch.cat(parts).float().cpu().numpy()

    def plot(self, images: Any, *, attention: bool = False, **checks: Any) -> Figure:
        """Draw landmarks on faces, or what the class token attends to: a matplotlib figure, shown by a notebook."""
        pixels = as_pixels(images, **checks)
        shown = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        points = self._positions(pixels)
        if not attention:
            return landmark_overlay(shown, points)
        weights = self.attention(pixels, value_range="-1..1").mean(axis=1)[:, 0, 1:]
        return attention_overlay(shown, points, weights)

    def state(self) -> NetworkWeights:
        """Return the tensors as they are now, with their description."""
        backbone = dict(self.network.transformer.state_dict())
        if self.network.landmark_cnn is not None:
            backbone |= self.network.landmark_cnn.state_dict()
        if self.network.whitening is not None:
            backbone |= {WHITENING_PREFIX + name: v for name, v in self.network.whitening.state_dict().items()}
        backbone = {name: tensor.detach().cpu() for name, tensor in backbone.items()}
        return NetworkWeights(
            self.architecture, PublishedState(backbone), self.source, step=self.step, settings=self.settings
        )

    def save_pretrained(self, save_directory: str | Path, *, card: Card | None = None, **push: Any) -> str | None:
        """Write a Hugging Face folder: config.json, model.safetensors, README.md. Nothing is uploaded.

        Args:
            save_directory: the folder; files of an earlier call are replaced.
            card: what the model card says.
            push: of `huggingface_hub`; `push_to_hub=True` uploads, as the method `push_to_hub` does.
        """
        self._card = card or Card()
        (Path(save_directory) / CARD).unlink(missing_ok=True)
        return super().save_pretrained(save_directory, **push)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_hub_folder(str(save_directory), self.state(), getattr(self, "_card", Card()), force=True)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> FaceModel:
        folder = model_id
        if not os.path.isdir(model_id):
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            chosen = {name: options[name] for name in known if name in options}
            folder = snapshot_download(model_id, allow_patterns=[CONFIG, WEIGHTS, CARD], **chosen)
        return cls(read_hub_folder(folder))

    def _batches(self, pixels: Tensor) -> list[Tensor]:
        device = next(self.parameters()).device
        return [pixels[at : at + _BATCH].to(device) for at in range(0, len(pixels), _BATCH)]

    def _positions(self, pixels: Tensor) -> NDArray[np.float32]:
        """Return the centers of the patches, of a grid as well."""
        if self.network.landmark_cnn is not None:
            return self.landmarks(pixels, value_range="-1..1")
        side, count = self.network.patch_size, pixels.shape[-1] // self.network.patch_size
        centers = (np.arange(count, dtype=np.float32) + 0.5) * side - 0.5
        grid = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(1, -1, 2)
        return np.repeat(grid, len(pixels), axis=0)


def load(
    path: str | Path, *, device: str = "cpu", landmarks: str | None = None, revision: str | None = None
) -> FaceModel:
    """Load a face embedder.

    Args:
        path: the folder of a run, a checkpoint of it, a weights file, a published checkpoint (.pth), a Hugging Face
            folder, or an id of the Hub (owner/name), which is downloaded where no such path exists.
        device: where it computes.
        landmarks: checkpoint of the landmark CNN, for published pretraining checkpoints, which leave it out.
        revision: branch, tag or commit of the Hub.

    Raises:
        CheckpointError: the file is missing, damaged, or lacks a part.
    """
    return FaceModel(_weights(str(path), landmarks, revision)).to(inference_device(device)).eval()


def _weights(path: str, landmarks: str | None, revision: str | None) -> NetworkWeights:
    if is_hub_folder(path):
        return read_hub_folder(path)
    if not os.path.exists(path) and _HUB_ID.fullmatch(path):
        try:
            folder = snapshot_download(path, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
        except Exception as error:  # huggingface_hub has its own kinds, and those of its HTTP client
            raise CheckpointError(
                path,
                found=f"no such file or folder; from the Hub: {type(error).__name__}: {str(error).splitlines()[0]}",
                expected="a run, a checkpoint, or an id of the Hub that can be downloaded",
                fix="correct the path, or check the network and the id",
            ) from None
        return read_hub_folder(folder)
    if path.partition("?")[0].endswith((".pth", ".pt")) or landmarks is not None:
        return convert(path, landmarks=landmarks).weights
    return load_for_inference(path)


def create_model(name: str = "fvit_base", *, seed: int = 0, **changes: Any) -> FaceModel:
    """Create an untrained face embedder.

    Args:
        name: fvit_base, fvit_small or fvit_tiny; or timm/<name>, a plain ViT of timm.
        seed: of its weights.
        changes: of `Architecture`: num_tokens (196), patch_size (8), landmark_cnn (mobilenetv3; None: a grid),
            landmark_cnn_width (1.0).

    Raises:
        ConfigError: an unknown name or argument.
    """
    sizes = {f"fvit_{size}": value for size, value in FVIT_SIZES.items()}
    if name.startswith(TIMM_PREFIX):
        sizes[name] = plain_vit(name.removeprefix(TIMM_PREFIX)).size
    defaults: Mapping[str, Any] = {
        "num_tokens": 196,
        "patch_size": 8,
        "landmark_cnn": "mobilenetv3",
        "landmark_cnn_width": 1.0,
    }
    for subject, given, known in (("create_model", [name], sizes), (name, changes, defaults)):
        unknown = [one for one in given if one not in known]
        if unknown:
            expected = f"one of {', '.join(known)}" + (f", or {TIMM_PREFIX}<name>" if known is sizes else "")
            raise ConfigError(subject, found=", ".join(map(repr, unknown)), expected=expected, fix="correct it")
    values = {**defaults, **changes}
    architecture = Architecture(transformer=sizes[name], grid=values["landmark_cnn"] is None, **values)
    network = build_embedder(architecture, name, seed=seed)
    parts = [network.transformer, *([network.landmark_cnn] if network.landmark_cnn is not None else [])]
    state = PublishedState({key: value for part in parts for key, value in part.state_dict().items()})
    return FaceModel(NetworkWeights(architecture, state, f"{name}, untrained", seed=seed))
