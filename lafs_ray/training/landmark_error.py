"""Mean distance of a landmark CNN's landmarks from those in a landmark cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.images import ColorOrder, decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.data.landmark_cache import STAMP, CacheKey, open_landmarks
from lafs_ray.data.packed_set import read_json
from lafs_ray.errors import DataError
from lafs_ray.methods.landmark_regression import EYE_DISTANCE_PX, landmark_errors
from lafs_ray.training.tasks.build_landmark_cache import read_landmark_cnn
from lafs_ray.training.tasks.given_landmarks import cache_folders
from lafs_ray.training.tasks.landmarks import held_back_images
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor

_ROWS_PER_READ = 256


@dataclass(frozen=True)
class LandmarkError:
    """The error over some faces.

    Args:
        faces: number of faces.
        mean_px: mean over faces and landmarks, in pixels.
        median_px: median over faces of a face's mean.
        template_px: mean error of the mean landmarks of these faces, which look at no face: what a CNN has to beat.
        damaged: faces that could not be decoded, and are left out.
    """

    faces: int
    mean_px: float
    median_px: float
    template_px: float
    damaged: int

    def text(self) -> str:
        """Return the error in words."""
        parts = [
            f"{name} {pixels:.2f} px ({100 * pixels / EYE_DISTANCE_PX:.1f} % of the eyes' distance)"
            for name, pixels in (("mean", self.mean_px), ("median", self.median_px), ("fixed mean", self.template_px))
        ]
        damaged = f"; {self.damaged} damaged ones left out" if self.damaged else ""
        return f"landmark error on {self.faces:,} faces: {'; '.join(parts)}{damaged}"


def open_with_landmarks(path: str, color_order: ColorOrder, folder: str) -> FaceSet:
    """Open a set and cached landmarks of it.

    Raises:
        DataError: one of them is missing or damaged, or the landmarks are of another set.
    """
    faces = open_faces(path, color_order, IMAGE_SIZE)
    uri = filesystem.join(folder, STAMP)
    stamp = read_json(uri) if filesystem.exists(uri) else {}
    weights, count = str(stamp.get("weights", "")), int(stamp.get("num_landmarks", 0))
    key = CacheKey(weights, faces.fingerprint, color_order, count, faces.num_images)
    command = f"python jobs/cache_landmarks.py … {path} --out {folder}"
    return replace(faces, landmarks=open_landmarks(folder, key, command))


def held_back_faces(config: LandmarkConfig) -> dict[str, FaceSet]:
    """Return the images that a run does not train on, with the landmarks that it learns, by the path of their set.

    Raises:
        DataError: a set or landmarks are missing or damaged, or no image is held back.
    """
    found = {}
    folders = cache_folders(config.data, config.landmarks.cache)
    for one, folder in zip(config.data.sets, folders, strict=True):
        faces = open_with_landmarks(one.path, one.color_order, folder)
        held_back = held_back_images(config, one.path, faces)
        if len(held_back) == 0:
            raise DataError(
                "data.held_back",
                found=f"{config.data.held_back:g} of {faces.num_images} images: none",
                expected="images that the run does not train on",
                fix="name a set of other faces and its landmarks",
            )
        found[one.path] = faces.subset(held_back)
    return found


@torch.no_grad()
def landmark_error(checkpoint: str, faces: FaceSet, color_order: ColorOrder, device: str = "cpu") -> LandmarkError:
    """Compare a landmark CNN with the cached landmarks of all faces of a set.

    Raises:
        CheckpointError: there is no landmark CNN.
        DataError: it has another number of landmarks, or no face can be decoded.
    """
    network, _ = read_landmark_cnn(checkpoint)
    predict = LandmarkPredictor(network, device)
    errors, templates, damaged = [], [], 0
    mean = _mean_landmarks(faces)
    count = len(network.state_dict()["output_layer.1.bias"]) // 2
    if count != len(mean):
        raise DataError(
            checkpoint,
            found=f"{count} landmarks",
            expected=f"{len(mean)}, as in the cache",
            fix="name landmarks that the checkpoint has learned",
        )
    for first in range(0, faces.num_images, _ROWS_PER_READ):
        rows = faces.read(np.arange(first, min(first + _ROWS_PER_READ, faces.num_images)))
        assert rows.landmarks is not None
        images, kept = [], []
        for number, (image, error) in enumerate(zip(rows.images, rows.errors, strict=True)):
            try:
                if not error and not np.isnan(rows.landmarks[number]).any():
                    images.append(decode_image(image, color_order=color_order))
                    kept.append(number)
            except DataError:
                continue
        damaged += len(rows.images) - len(kept)
        if kept:
            given = torch.from_numpy(rows.landmarks[kept].astype(np.float32))
            found = predict(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)).cpu()
            errors.append(landmark_errors(found, given))
            templates.append(landmark_errors(mean.expand_as(given), given))
    if not errors:
        raise DataError(checkpoint, found="no face that can be decoded", expected="sound faces", fix="name another set")
    px, template = torch.cat(errors), torch.cat(templates)
    return LandmarkError(len(px), float(px.mean()), float(px.median()), float(template.mean()), damaged)


def _mean_landmarks(faces: FaceSet) -> torch.Tensor:
    """Return the mean landmarks of a set's faces, float32 [N, 2]."""
    total, count = 0.0, 0
    for first in range(0, faces.num_images, _ROWS_PER_READ):
        rows = np.arange(first, min(first + _ROWS_PER_READ, faces.num_images))
        assert faces.landmarks is not None
        numbers = rows if faces.landmark_rows is None else faces.landmark_rows[rows]
        landmarks = faces.landmarks.read(numbers).astype(np.float64)
        sound = landmarks[~np.isnan(landmarks).any(axis=(1, 2))]
        total, count = total + sound.sum(axis=0), count + len(sound)
    return torch.from_numpy(np.asarray(total / max(count, 1))).float()
