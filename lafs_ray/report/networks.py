"""The networks of the runs on a page, and what is computed with them once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
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
        weights: of the checkpoint that it is of.
        embedder: in eval mode.
        step: of the checkpoint; None: it is not trained.
    """

    name: str
    weights: NetworkWeights
    embedder: FaceEmbedder
    step: int | None
    _embedded: dict[int, tuple[EvalFaces, Floats]] = field(default_factory=dict, init=False)

    def embed(self, faces: EvalFaces) -> Floats:
        """Return the embeddings of faces and their mirror images, added up, [N, D]; computed once for each source."""
        if id(faces) not in self._embedded:
            # With the faces, as the number of one that is gone may be another's.
            self._embedded[id(faces)] = faces, flip_sum(embed_faces(self.embedder, faces, progress=True))
        return self._embedded[id(faces)][1]

    def embed_pairs(self, pairs: PairSet) -> Floats:
        """Return the embeddings of a pair file, [2P, D]."""
        return self.embed(pairs.faces)


def whitened(networks: Sequence[Network], options: WhiteningOptions, color_order: ColorOrder) -> list[Network]:
    """Return networks with whitened embeddings.

    Raises:
        UserError: the faces that a whitening is fitted on cannot be read, or are too few.
    """
    result: list[Network] = []
    for network in networks:
        logger.info("whitening of %s", network.name)
        is_trained = network.step is not None
        embedder = whitened_network(network.weights, options, trained=is_trained, color_order=color_order)
        result.append(replace(network, name=network.name + WHITENED, embedder=embedder))
    return result


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
            networks.append(Network(UNTRAINED, weights, weights.embedder(trained=False), None))
        networks.append(Network(run.name, weights, weights.embedder(), weights.step))
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
