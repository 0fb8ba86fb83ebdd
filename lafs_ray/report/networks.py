"""The networks of the runs on a page, and what is computed with them once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import resolve
from lafs_ray.data.eval_sets import EvalFaces, PairSet
from lafs_ray.data.images import ColorOrder
from lafs_ray.errors import UserError
from lafs_ray.evaluation.embed import embed_faces, flip_sum
from lafs_ray.evaluation.protocols import WHITENED
from lafs_ray.evaluation.whitening import WhiteningOptions, whitened_network
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.report.runs import RunRecord
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.tasks.build_landmark_cache import read_landmark_cnn
from lafs_ray.training.tasks.networks import build_landmark_network, seed_weights

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
UNTRAINED = "untrained"


@dataclass(eq=False)
class Network:
    """A network under a name.

    Args:
        name: of the run, or of what it is compared with.
        embedder: in eval mode.
        step: of the checkpoint.
    """

    name: str
    embedder: FaceEmbedder
    step: int | None
    _embedded: dict[int, tuple[EvalFaces, Floats]] = field(default_factory=dict)

    def embed(self, faces: EvalFaces) -> Floats:
        """Return the embeddings of faces and their mirror images, added up, [N, D]; computed once for each source."""
        if id(faces) not in self._embedded:
            # With the faces, as the number of one that is gone may be another's.
            self._embedded[id(faces)] = faces, flip_sum(embed_faces(self.embedder, faces, progress=True))
        return self._embedded[id(faces)][1]

    def embed_pairs(self, pairs: PairSet) -> Floats:
        """Return the embeddings of a pair file, [2P, D]."""
        return self.embed(pairs.faces)


def whitened(runs: Sequence[RunRecord], options: WhiteningOptions, color_order: ColorOrder) -> list[Network]:
    """Return the whitened networks of runs, and first the first one's without training, whitened alike.

    Raises:
        UserError: the faces that it is fitted on cannot be read, or are too few.
    """
    networks: list[Network] = []
    for run in (run for run in runs if not run.is_landmark_regression):
        try:
            weights = load_for_inference(run.uri)
        except UserError:
            continue  # `load_networks` says so.
        for is_trained in (True,) if networks else (False, True):
            logger.info("whitening of %s", run.name if is_trained else "the untrained network")
            embedder = whitened_network(weights, options, trained=is_trained, color_order=color_order)
            name = run.name if is_trained else UNTRAINED
            networks.append(Network(name + WHITENED, embedder, weights.step if is_trained else None))
    return networks


def load_networks(runs: Sequence[RunRecord]) -> tuple[list[Network], list[str]]:
    """Load the newest checkpoint of each run, and the first one's network without training.

    Returns:
        The untrained network, then those of the runs; and why others could not be loaded.
    """
    networks: list[Network] = []
    problems = []
    for run in runs:
        if run.is_landmark_regression:
            problems.append(f"{run.name}: a landmark CNN alone, which embeds no faces.")
            continue
        try:
            weights = load_for_inference(run.uri)
        except UserError as error:
            problems.append(f"{run.name}: no network to show: {error.found}")
            continue
        if not networks:
            networks.append(Network(UNTRAINED, weights.embedder(trained=False), None))
        networks.append(Network(run.name, weights.embedder(), weights.step))
    return networks, problems


def regressed_landmarks(run: RunRecord) -> nn.Module | None:
    """Return the landmark CNN of a landmark regression; None where it cannot be read."""
    try:
        network, _ = read_landmark_cnn(run.uri)
    except UserError:
        return None
    return network.eval()


def landmarks_before(run: RunRecord) -> nn.Module | None:
    """Return the landmark CNN that a supervised run began with; None where it is frozen, or no longer to be had."""
    if run.is_pretraining:
        return None
    start = run.config.get("start") or {}
    source = start.get("landmarks") or start.get("transformer")
    try:
        if source:
            return load_for_inference(source).embedder().landmark_cnn
        config = resolve(FinetuneConfig, dict(run.config), run.uri)
    except UserError:
        return None
    seed_weights(config.run.seed)
    return build_landmark_network(config).eval()
