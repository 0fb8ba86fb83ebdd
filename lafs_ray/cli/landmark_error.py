"""`lafs landmark-error`: mean distance of a landmark CNN's landmarks from given ones."""

from __future__ import annotations

import json
from argparse import Namespace

from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import resolve
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show
from lafs_ray.training.checkpoint.inference import inference_device
from lafs_ray.training.landmark_error import held_back_faces, landmark_error, open_with_landmarks


def error_job(options: Namespace) -> None:
    """Print the error of a landmark CNN.

    Raises:
        UserError: an error in the arguments, the checkpoint, the faces or the landmarks.
    """
    device = str(inference_device(options.device))
    if options.faces is None:
        config = _regression_config(options.checkpoint)
        held_back = held_back_faces(config)
        for one in config.data.sets:
            error = landmark_error(options.checkpoint, held_back[one.path], one.color_order, device)
            show(error.text() if config.data.mix is None else f"{one.path}: {error.text()}")
        return
    if options.landmarks is None:
        raise ConfigError(
            "landmarks",
            found=f"only {options.faces}",
            expected="a set and the folder of its cached landmarks",
            fix="name both, or neither: the images that the run has held back",
        )
    folder = filesystem.absolute(options.landmarks)
    faces = open_with_landmarks(filesystem.absolute(options.faces), options.color_order, folder)
    show(landmark_error(options.checkpoint, faces, options.color_order, device).text())


def _regression_config(run: str) -> LandmarkConfig:
    uri = filesystem.join(run, "config.json")
    content = json.loads(filesystem.read_bytes(uri)) if filesystem.exists(uri) else {}
    if content.get("kind") != LandmarkConfig.__name__:
        raise ConfigError(
            "faces",
            found=f"none, and {run} is not the folder of a run of `lafs train-landmarks`",
            expected="a set and its landmarks, or such a run, which has held back images of its own",
            fix="name a set and the folder of its cached landmarks",
        )
    return resolve(LandmarkConfig, content["config"], uri)
