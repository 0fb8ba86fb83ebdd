"""From a batch of faces to landmark tokens: crop, flip, appearance, landmarks, patches.

Ray Data actors and debug mode call the same object; a GPU's form is `device_views`. A record's tokens depend on (seed,
epoch, shard, key) and its pixels alone, bit by bit, in any batch: every operation works on each view by itself.
Convolutions change their order of summation with the batch size and, on some CPUs, with the number of threads, so the
landmark CNN runs on groups of one size and on one thread; cached landmarks equal those of a run. Tokens are uint8, 130
KB per image: t means t / 127.5 - 1, at most half a step of 8 bits from the reference's float tokens. Shape letters: B
images, V views, N landmarks, n tokens of a local view, p patch side, P numbers in a token, S image side.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.models.landmark_cnn import MIDDLE
from lafs_ray.models.landmark_template import TemplateLandmarks
from lafs_ray.models.orientation_tokens import grid_centers, orientation_tokens
from lafs_ray.models.patch_sampling import extract_patches, grid_patches
from lafs_ray.transforms import augment_uint8
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor, keep_freed_memory
from lafs_ray.transforms.orientation_uint8 import sample_orientations
from lafs_ray.transforms.params import Records, ViewParams, ViewSettings, sample_view_params


class MultiViewTransform:
    """Transforms faces into the tokens of their global and local views.

    Args:
        settings: of the views.
        landmarker: [M, 3, S, S] in [-1, 1] to landmarks [M, N, 2] in pixels; a frozen copy is used. None exactly if the
            source is `cached` or `grid`; with `template` a `TemplateLandmarks`.
        seed: the run's seed.
        chunk: images processed at once; the views of eight still fit the cache. Changes speed, never results.
    """

    def __init__(self, settings: ViewSettings, landmarker: nn.Module | None, seed: int, *, chunk: int = 8) -> None:
        assert (landmarker is None) == (settings.source in ("cached", "grid")), settings
        self.settings = settings
        self.seed = seed
        self.chunk = chunk
        keep_freed_memory()
        self._predictor: LandmarkPredictor | nn.Module | None = None
        if isinstance(landmarker, TemplateLandmarks):
            self._predictor = copy.deepcopy(landmarker)
        elif landmarker is not None:
            self._predictor = LandmarkPredictor(landmarker)

    @torch.no_grad()
    def __call__(
        self,
        images: NDArray[np.uint8] | Tensor,
        epoch: Records,
        shard: Records,
        key: Records,
        landmarks: NDArray[np.float16] | Tensor | None = None,
    ) -> dict[str, NDArray[np.uint8]]:
        """Return the tokens of B ≥ 1 faces.

        Args:
            images: uint8 [B, S, S, 3], RGB.
            epoch: [B], as in `sample_view_params`.
            shard: [B], as in `sample_view_params`.
            key: [B], as in `sample_view_params`.
            landmarks: [B, 2, N, 2] of the whole images and of their mirror images, as points of the images in pixels,
                exactly if the source is `cached`.

        Returns:
            `global_tokens` uint8 [B, V_g, N, P] and `local_tokens` uint8 [B, V_l, n, P].
        """
        return self.tokens(images, sample_view_params(self.settings, self.seed, epoch, shard, key), landmarks)

    @torch.no_grad()
    def tokens(
        self,
        images: NDArray[np.uint8] | Tensor,
        params: ViewParams,
        landmarks: NDArray[np.float16] | Tensor | None = None,
    ) -> dict[str, NDArray[np.uint8]]:
        """Return the tokens of B ≥ 1 faces as a call, with crops, colors, noise and indices given instead of sampled.

        Args:
            images: uint8 [B, S, S, 3], RGB.
            params: of their views.
            landmarks: as in a call.
        """
        pixels = to_tensor(images)
        size = self.settings.image_size
        assert pixels.shape[1:] == (size, size, 3), pixels.shape
        on_images = self._landmarks_on_images(pixels, params, landmarks)
        chunks = []
        for start in range(0, len(pixels), self.chunk):
            rows = slice(start, start + self.chunk)
            known = None if on_images is None else on_images[rows]
            chunks.append(self._tokens(pixels[rows], params.images(rows), known))
        names = ("global_tokens", "local_tokens")
        return {name: torch.cat([chunk[i] for chunk in chunks]).numpy() for i, name in enumerate(names)}

    def transform_columns(self, faces: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the tokens of decoded faces, with their shard and key.

        Args:
            faces: columns image, epoch, shard, key and, if the source is `cached`, landmarks, as the arguments of a
                call.
        """
        image, epoch, shard, key = (faces[name] for name in ("image", "epoch", "shard", "key"))
        tokens = self(image, epoch, shard, key, faces.get("landmarks"))
        return {**tokens, "shard": shard, "key": key}

    def _tokens(self, images: Tensor, params: ViewParams, on_images: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return global and local tokens of some images."""
        settings = self.settings
        tokens = []
        for is_local, size in ((False, settings.image_size), (True, settings.local_size)):
            first, last = settings.num_global, settings.num_views
            part = params.views(slice(first, last) if is_local else slice(0, first))
            clean = augment_uint8.crop_views(images, part.boxes, part.flips, size)
            changed = augment_uint8.change_appearance(clean, part)
            if settings.source == "grid" and settings.token_features == "pixels":
                patches = grid_patches(changed, settings.patch_size)
                patches = patches.reshape(*part.flips.shape, *patches.shape[1:])
            else:
                patches = self.view_tokens(clean, changed, part, on_images, size, is_local=is_local)
            tokens.append(patches)
        return tokens[0], tokens[1]

    @torch.no_grad()
    def view_tokens(
        self,
        clean: Tensor,
        changed: Tensor,
        params: ViewParams,
        on_images: Tensor | None = None,
        size: int | None = None,
        *,
        is_local: bool,
    ) -> Tensor:
        """Return tokens of V views of B images from their pixels, with given noise and indices of landmarks.

        Args:
            clean: [B·V, 3, S, S] in 0…255, crops that the landmark CNN sees.
            changed: the same with changed appearance, from which patches are sampled.
            params: of these views.
            on_images: landmarks of whole images and of their mirror images [B, 2, N, 2], mapped to the views instead of
                predicted on `clean`.
            size: S, by default that of the images.
            is_local: whether the views keep only the landmarks of `params.local_indices`.

        Returns:
            uint8 [B, V, n, P].
        """
        size = self.settings.image_size if size is None else size
        settings = self.settings
        if settings.source == "grid":
            landmarks = grid_centers(size, settings.patch_size).to(changed.device).expand(len(changed), -1, -1)
        else:
            landmarks = self._landmarks(clean, on_images, params, size, is_local=is_local).flatten(0, 1)
        extract = extract_tokens if settings.token_features == "pixels" else extract_orientations
        patches = extract(changed, landmarks, settings.patch_size)
        return patches.reshape(*params.flips.shape, *patches.shape[1:])

    def _landmarks(
        self, clean: Tensor, on_images: Tensor | None, params: ViewParams, size: int, *, is_local: bool
    ) -> Tensor:
        """Return the perturbed landmarks [B, V, n, 2]: all of them, or those of local views.

        Landmarks that a local view does not keep are not mapped to it either.
        """
        noise = torch.from_numpy(params.landmark_noise_px).to(clean.device)
        flips = torch.from_numpy(params.flips)
        if on_images is not None:
            landmarks = of_views(on_images, flips)
        elif len(clean):
            landmarks = self.predict_landmarks(clean).reshape(noise.shape)
        else:
            landmarks = noise  # num_local = 0: no views, hence no landmarks
        if is_local:
            kept = torch.from_numpy(params.local_indices).to(clean.device).unsqueeze(-1)
            kept = kept.expand(-1, -1, -1, 2)
            landmarks, noise = landmarks.gather(2, kept), noise.gather(2, kept)
        if on_images is not None:
            landmarks = map_landmarks(landmarks, torch.from_numpy(params.boxes), flips, size)
        return landmarks + noise

    def _landmarks_on_images(
        self, images: Tensor, params: ViewParams, cached: NDArray[np.float16] | Tensor | None
    ) -> Tensor | None:
        """Return landmarks [B, 2, N, 2] of images and their mirror images; None if the source does not use them."""
        source = self.settings.source
        assert (cached is not None) == (source == "cached"), source
        if cached is not None:
            return torch.as_tensor(cached).to(torch.float32)
        if source in ("per_image", "template"):
            planes = images.permute(0, 3, 1, 2)
            landmarks = self.predict_landmarks(planes)
            mirrored = self.predict_landmarks(planes.flip(-1)) if params.flips.any() else landmarks
            return torch.stack((landmarks, mirror_x(mirrored)), dim=1)
        return None

    def predict_landmarks(self, planes: Tensor) -> Tensor:
        """Predict landmarks [M, N, 2] of images [M, 3, S, S] in 0…255."""
        assert self._predictor is not None
        landmarks: Tensor = self._predictor(planes)
        return landmarks


def supervised_view(
    settings: ViewSettings, images: NDArray[np.uint8] | Tensor, seed: int, epoch: Records, shard: Records, key: Records
) -> Tensor:
    """Return one augmented view of every image, the input of supervised training.

    Args:
        settings: of one view.
        images: uint8 [B, S, S, 3], RGB.
        seed: the run's seed.
        epoch: [B], as in `sample_view_params`.
        shard: [B], as in `sample_view_params`.
        key: [B], as in `sample_view_params`.

    Returns:
        uint8 [B, S, S, 3], RGB.
    """
    assert settings.num_views == 1, settings
    pixels = to_tensor(images)
    params = sample_view_params(settings, seed, epoch, shard, key)
    clean = augment_uint8.crop_views(pixels, params.boxes, params.flips, settings.image_size)
    return augment_uint8.change_appearance(clean, params).permute(0, 2, 3, 1).contiguous()


def of_views(on_images: Tensor, flips: Tensor) -> Tensor:
    """Return the landmarks [B, V, N, 2] that the views of an image have, as points of the image.

    Args:
        on_images: [B, 2, N, 2], of the image and of its mirror image.
        flips: bool [B, V], which views are mirrored.
    """
    plain, mirrored = on_images.unsqueeze(1).unbind(2)
    return torch.where(flips[:, :, None, None].to(on_images.device), mirrored, plain)


def mirror_x(landmarks: Tensor) -> Tensor:
    """Return the places [..., 2] on an image of points of its mirror image, in pixels, (x, y), as `map_landmarks`."""
    places = landmarks.clone()
    places[..., 0] = IMAGE_SIZE + 1 - landmarks[..., 0]
    return places


def map_landmarks(landmarks: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Map landmarks of an image to the same points of its views.

    A patch's middle pixel lies one up-left of its landmark (`extract_patches`), at ½ less in coordinates that count
    from the image's edge, so it is landmark - ½ that the crop scales and shifts and the flip mirrors; the patch of a
    mirrored view is then the mirrored patch.

    Args:
        landmarks: [B, V, n, 2] or, the same for all views, [B, 1, n, 2]; pixels of the image, (x, y).
        boxes: integers [B, V, 4], (top, left, height, width).
        flips: bool [B, V].
        size: side of the views, in pixels.

    Returns:
        [B, V, n, 2], pixels of the views.
    """
    top, left, height, width = boxes.double().unbind(-1)
    scale_x, scale_y = size / width, size / height
    shift_x, shift_y = 0.5 - (left + 0.5) * scale_x, 0.5 - (top + 0.5) * scale_y
    scale_x, shift_x = torch.where(flips, -scale_x, scale_x), torch.where(flips, size + 1 - shift_x, shift_x)
    scales = torch.stack((scale_x, scale_y), dim=-1).to(landmarks).unsqueeze(2)
    shifts = torch.stack((shift_x, shift_y), dim=-1).to(landmarks).unsqueeze(2)
    return landmarks * scales + shifts


def extract_tokens(views: Tensor, landmarks: Tensor, patch_size: int) -> Tensor:
    """Extract patches around landmarks as 8-bit tokens; 128 outside of the view.

    Args:
        views: [M, 3, S, S] in 0…255, float32, or on CPU uint8.
        landmarks: float32 [M, n, 2], pixels.
        patch_size: p, in pixels.

    Returns:
        uint8 [M, n, p·p·3].
    """
    if views.dtype == torch.uint8:
        pixels = views.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(augment_uint8.sample_patches(pixels, landmarks.numpy(), patch_size))
    # Sampling x - 127.5 with zeros outside is sampling in [-1, 1] without two more passes. Samples lie between pixels,
    # so adding 128 and truncating rounds them into 0…255.
    samples = extract_patches(views - MIDDLE, landmarks, patch_size)
    return samples.add_(MIDDLE + 0.5).to(torch.uint8)


def extract_orientations(views: Tensor, landmarks: Tensor, patch_size: int) -> Tensor:
    """Describe the patches around landmarks as 8-bit orientation tokens, uint8 [M, n, 32].

    Arguments as in `extract_tokens`; definition: `models.orientation_tokens`.
    """
    if views.dtype == torch.uint8:
        pixels = views.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(sample_orientations(pixels, landmarks.numpy(), patch_size))
    tokens = orientation_tokens(views / MIDDLE - 1, landmarks, patch_size)
    return tokens.add_(1).mul_(MIDDLE).add_(0.5).to(torch.uint8)


def to_tensor(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Return images as a uint8 tensor; memory is shared with a writable array."""
    if isinstance(images, np.ndarray):
        # Ray's arrays are read-only, which torch refuses to share.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    assert images.dtype == torch.uint8, images.dtype
    return images
