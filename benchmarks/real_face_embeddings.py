"""Embeddings of `benchmarks.real_faces`: a pair file's faces to float64 [N, D], images and mirror images added."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_face_runs import Plan, whitened_file, whitening
from lafs_ray.config.train import Readout
from lafs_ray.data.eval_sets import EvalFaces, open_pairs
from lafs_ray.evaluation.embed import center, embed_faces, flip_sum
from lafs_ray.evaluation.verification import raw_pixel_embeddings
from lafs_ray.evaluation.whitening import embed_pixels, fit_pixels
from lafs_ray.training.checkpoint.inference import load_for_inference

Rows = NDArray[np.floating[Any]]
# The path of a pair file to the embeddings of its faces.
Embed = Callable[[str], Rows]
_FILES = 2
"""Of View 1; View 2 has one."""


def faces_of(file: str) -> EvalFaces:
    """Return the faces of a pair file."""
    return open_pairs(file).faces


def network(path: str) -> Embed:
    """Return the embedding of a run's network, as the run reads it."""
    embedder = load_for_inference(path).embedder()
    return lambda file: flip_sum(embed_faces(embedder, faces_of(file)))


def centered(embed: Embed) -> Embed:
    """Return an embedding less its mean over the faces: after few steps embeddings lie in a narrow cone."""
    return lambda file: center(embed(file))


@lru_cache(maxsize=_FILES)
def outputs(path: str, file: str, of: Readout, *, trained: bool) -> NDArray[np.float32]:
    """Return outputs of a run's network: float32 [N, 2, (n + 1) · W] of `all`, the class token first.

    Kept for the readouts that follow, as landmarks, tokens and transformer are nearly all of the time.
    """
    embedder = load_for_inference(path).read_by(of).embedder(trained=trained)
    return embed_faces(embedder, faces_of(file))


def class_token(plan: Plan, path: str, of: Readout = "all", *, trained: bool) -> Embed:
    """Return the class token of a run's network; `of`: the outputs that are computed."""
    del plan
    width = load_for_inference(path).read_by("class").architecture.read_dim
    return lambda file: flip_sum(outputs(path, file, of, trained=trained)[..., :width])


def whitened(
    plan: Plan, path: str, of: Readout = "all", *, readout: str, neighbors: bool = False, trained: bool = True
) -> Embed:
    """Return the whitened class token or outputs (`all`) of a run's network; `of`: the outputs that are computed."""
    fitted = load_for_inference(whitened_file(plan, path, readout, neighbors=neighbors, trained=trained))
    matrix = fitted.embedder().whitening
    assert matrix is not None

    def embed(file: str) -> Rows:
        # The first numbers of all outputs are the class token.
        read = outputs(path, file, of, trained=trained)[..., : len(matrix.mean)]
        return flip_sum(matrix(torch.from_numpy(read)).numpy())

    return embed


def pixels(plan: Plan, *, neighbors: bool) -> Embed:
    """Return whitened gray pixels."""
    fitted = fit_pixels(whitening(plan, neighbors=neighbors))
    return lambda file: flip_sum(embed_pixels(fitted, faces_of(file)))


def raw_pixels(file: str) -> Rows:
    """Return raw pixels less their mean, in float32."""
    faces = faces_of(file)
    rows = (faces.read(start, min(start + 256, faces.num_images)) for start in range(0, faces.num_images, 256))
    return np.concatenate([raw_pixel_embeddings(part).astype(np.float32) for part in rows])
