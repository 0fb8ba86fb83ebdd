"""From packed faces to landmark tokens on the training device: `MultiViewTransform` for `crops.device: cuda`.

Everything random comes with the faces (`packed_faces`), so a GPU gets one copy, the host reads nothing back, and it
launches as much for one image as for 256. Tokens differ from a CPU's by rounding: a CPU rounds to 8 bits after each
operation (`augment_float`), and the landmark CNN is in bfloat16 here. Shape letters as in `views`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lafs_ray.models.landmark_template import TemplateLandmarks
from lafs_ray.models.orientation_tokens import grid_centers
from lafs_ray.models.patch_sampling import grid_patches
from lafs_ray.models.tokens import token_dim
from lafs_ray.transforms.augment_float import Operations, change_appearance
from lafs_ray.transforms.landmark_predictor import DeviceLandmarkPredictor
from lafs_ray.transforms.packed_faces import PACKED, FaceTensors, PackedLayout
from lafs_ray.transforms.params import ViewSettings
from lafs_ray.transforms.views import extract_orientations, extract_tokens, map_landmarks, mirror_x, of_views


class DeviceViews:
    """Transforms packed faces into the tokens of their global and local views, on one device.

    Args:
        settings: of the views.
        landmarker: as for `MultiViewTransform`; a frozen copy is used.
        device: of the faces.
    """

    def __init__(self, settings: ViewSettings, landmarker: nn.Module | None, device: torch.device) -> None:
        assert (landmarker is None) == (settings.source in ("cached", "grid")), settings
        self.settings = settings
        self.layout = PackedLayout(settings)
        # Replaced where they are compiled.
        self.operations = Operations()
        self._predictor: DeviceLandmarkPredictor | nn.Module | None = None
        if isinstance(landmarker, TemplateLandmarks):
            self._predictor = copy.deepcopy(landmarker).to(device)
        elif landmarker is not None:
            self._predictor = DeviceLandmarkPredictor(landmarker, device)
        self._centers: list[Tensor] = []
        if settings.source == "grid":
            sizes = (settings.image_size, settings.local_size)
            self._centers = [grid_centers(size, settings.patch_size).to(device) for size in sizes]

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tokens of B ≥ 1 faces.

        Args:
            batch: `packed`, uint8 [B, `layout.row_bytes`] on the device; `paired`, if there is such a column, is
                passed on.

        Returns:
            `global_tokens` uint8 [B, V_g, N, P] and `local_tokens` uint8 [B, V_l, n, P].
        """
        faces = self.layout.unpack(batch[PACKED])
        on_images = self._landmarks_on_images(faces)
        first = self.settings.num_global
        tokens = {
            "global_tokens": self._tokens(faces, slice(0, first), on_images, is_local=False),
            "local_tokens": self._tokens(faces, slice(first, None), on_images, is_local=True),
        }
        return {**tokens, "paired": batch["paired"]} if "paired" in batch else tokens

    def _tokens(self, faces: FaceTensors, views: slice, on_images: Tensor | None, *, is_local: bool) -> Tensor:
        settings = self.settings
        size = settings.local_size if is_local else settings.image_size
        boxes, flips = faces.boxes[:, views], faces.flips[:, views]
        if not flips.shape[1]:
            width = token_dim(settings.patch_size, settings.token_features)
            return faces.image.new_empty(len(flips), 0, settings.local_tokens, width)
        clean = self.operations.crop_views(faces.image, boxes, flips, size)
        colors, kernels = faces.colors[:, views].flatten(0, 1), faces.kernels[:, views].flatten(0, 1)
        changed = change_appearance(clean, colors, kernels, faces.solarizes[:, views].flatten(), self.operations)
        if settings.source == "grid" and settings.token_features == "pixels":
            tokens = grid_patches(changed, settings.patch_size).round().to(torch.uint8)
            return tokens.view(*flips.shape, *tokens.shape[1:])
        if settings.source == "grid":
            landmarks = self._centers[is_local].expand(len(changed), -1, -1)
        else:
            landmarks = self._landmarks(faces, clean, boxes, flips, on_images, is_local=is_local).flatten(0, 1)
        extract = extract_tokens if settings.token_features == "pixels" else extract_orientations
        tokens = extract(changed, landmarks, settings.patch_size)
        return tokens.view(*flips.shape, *tokens.shape[1:])

    def _landmarks(
        self,
        faces: FaceTensors,
        clean: Tensor,
        boxes: Tensor,
        flips: Tensor,
        on_images: Tensor | None,
        *,
        is_local: bool,
    ) -> Tensor:
        """Return the perturbed landmarks [B, V, n, 2]: all of them, or those of local views."""
        views = flips.shape[1]
        if on_images is not None:
            landmarks = of_views(on_images, flips)
        else:
            landmarks = self._predict(clean).view(len(flips), views, -1, 2)
        if is_local:
            kept = faces.local_indices.long().unsqueeze(-1).expand(-1, -1, -1, 2)
            landmarks = landmarks.gather(2, kept)
        if on_images is not None:
            landmarks = map_landmarks(landmarks, boxes, flips, self.settings.image_size)
        return landmarks + (faces.local_noise if is_local else faces.global_noise)

    def _landmarks_on_images(self, faces: FaceTensors) -> Tensor | None:
        """Return landmarks [B, 2, N, 2] of images and their mirror images; None if the source does not use them."""
        source = self.settings.source
        if source == "cached":
            return faces.landmarks.float()
        if source in ("per_image", "template"):
            planes = faces.image.permute(0, 3, 1, 2)
            landmarks, mirrored = self._predict(torch.cat((planes, planes.flip(-1)))).chunk(2)
            return torch.stack((landmarks, mirror_x(mirrored)), dim=1)
        return None

    def _predict(self, planes: Tensor) -> Tensor:
        assert self._predictor is not None
        landmarks: Tensor = self._predictor(planes)
        return landmarks
