"""The page of runs, or of a sweep: what was given is read, the rest is shown without."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import EvalFaces, LabeledSet, RecordImages, color_order_of, open_pairs
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.images import ColorOrder
from lafs_ray.errors import ConfigError, UserError
from lafs_ray.evaluation.neighbors import check_possible
from lafs_ray.evaluation.whitening import WhiteningOptions
from lafs_ray.report import html
from lafs_ray.report.faces import (
    attention_pictures,
    hardest_pairs,
    landmark_pictures,
    neighbor_pictures,
    token_pictures,
)
from lafs_ray.report.learned import evaluations_over_time, neighbors_evaluated, pairs_evaluated
from lafs_ray.report.networks import Network, landmarks_before, load_networks, regressed_landmarks, whitened
from lafs_ray.report.overview import overview
from lafs_ray.report.progress import progress
from lafs_ray.report.runs import RunRecord, is_run, read_run, short_names
from lafs_ray.report.sweep import is_sweep, read_sweep_folder, sweep_sections
from lafs_ray.training.checkpoint.run_description import set_paths

logger = logging.getLogger(__name__)

_DRAWN, _SEARCHED = 12, 512


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Runs and what they are shown with.

    Args:
        runs: folders of runs; or of one sweep.
        faces: a set to draw from; None: the first run's training set.
        pairs: a pair file; None: that of the first run's online evaluation.
        color_order: of both.
        whiten: networks are compared whitened as well; None: as they are.
    """

    runs: Sequence[str]
    faces: str | None = None
    pairs: str | None = None
    color_order: ColorOrder = "rgb"
    whiten: WhiteningOptions | None = None


def report_page(request: ReportRequest) -> bytes:
    """Return the page.

    Raises:
        UserError: a folder is not of a run or a sweep; faces or pairs that were given cannot be read.
    """
    sweeps = [uri for uri in request.runs if is_sweep(uri) and not is_run(uri)]
    if sweeps and len(request.runs) > 1:
        raise ConfigError(
            sweeps[0], found="a sweep among several folders", expected="one sweep, or runs", fix="report it alone"
        )
    if sweeps:
        if request.whiten is not None:
            raise ConfigError(
                "--whiten", found="a sweep", expected="runs, whose networks are whitened", fix="leave out --whiten"
            )
        sweep = read_sweep_folder(sweeps[0])
        subtitle = f"{len(sweep.trials)} trials, task {sweep.config.task}"
        return html.page(f"Sweep {sweep.config.name}", subtitle, sweep_sections(sweep))
    names = short_names([*request.runs])
    runs = [read_run(uri, name) for uri, name in zip(request.runs, names, strict=True)]
    networks, problems = load_networks(runs)
    sections = [
        html.Section("What it is", overview(runs)),
        html.Section("How it went", progress(runs)),
        html.Section("What it learned", _learned(request, runs, networks, problems)),
        html.Section("What it sees", _seen(request, runs, networks)),
    ]
    kinds = ", ".join(dict.fromkeys(run.kind for run in runs))
    return html.page(" and ".join(names), kinds, sections)


def _learned(request: ReportRequest, runs: list[RunRecord], networks: list[Network], problems: list[str]) -> str:
    parts = [html.notes(problems), evaluations_over_time(runs)]
    source = request.pairs or (runs[0].config.get("online_eval") or {}).get("pairs")
    shown = [*networks]
    if request.whiten is not None:
        if not (source and networks):
            raise ConfigError(
                "--whiten",
                found="no pair file" if networks else "no network that embeds faces",
                expected="pairs on which whitened networks are compared",
                fix="give --pairs, or leave out --whiten",
            )
        shown += whitened(networks, request.whiten, request.color_order)
    if source and networks:
        try:
            pairs = open_pairs(source, request.color_order)
            logger.info("pairs of %s", source)
            parts += [pairs_evaluated(shown, pairs), hardest_pairs(shown[-1], pairs)]
        except UserError as error:
            if request.pairs is not None:
                raise
            parts.append(html.notes([f"Pairs of the online evaluation cannot be read: {error.subject}: {error.found}"]))
    elif networks:
        parts.append(html.notes(["No pair file was given (--pairs): no accuracy is computed."]))
    return "".join(parts)


def _seen(request: ReportRequest, runs: list[RunRecord], networks: list[Network]) -> str:
    regressions = [(run.name, regressed_landmarks(run)) for run in runs if run.is_landmark_regression]
    if not (networks or regressions):
        return ""
    path = request.faces or set_paths(runs[0].config)[0]
    try:
        faces = open_faces(path)
        source, labels = _some(path, faces, request.color_order)
        images = source.read(0, source.num_images)
    except UserError as error:
        if request.faces is not None:
            raise
        return html.notes([f"The training set cannot be read: {error.subject}: {error.found}. Give --faces."])
    few = images[np.linspace(0, len(images) - 1, min(_DRAWN, len(images))).astype(int)]
    parts = [html.paragraph(f"Faces of {path}.", "faint")]
    for network in networks[1:]:
        logger.info("what %s sees", network.name)
        title = html.heading(network.name) if len(networks) > 2 else ""
        before = landmarks_before(next(run for run in runs if run.name == network.name))
        after = network.embedder.landmark_cnn
        parts += [title, landmark_pictures(before, after, few), attention_pictures(network.embedder, few)]
        parts += [token_pictures(network.embedder, few), neighbor_pictures(network, source, images, labels)]
    for name, landmark_cnn in regressions:
        parts += [html.heading(name) if len(runs) > 1 else "", landmark_pictures(None, landmark_cnn, few)]
    if labels is not None and networks:
        try:
            check_possible(labels, [1])
            parts.insert(1, neighbors_evaluated(networks, LabeledSet(path, source, labels)))
        except UserError:
            pass
    return "".join(parts)


def _some(path: str, faces: FaceSet, color_order: ColorOrder) -> tuple[EvalFaces, NDArray[np.int64] | None]:
    """Return some hundred sound faces of a set, evenly, and their labels where all have one."""
    index = np.unique(np.linspace(0, faces.num_images - 1, min(_SEARCHED, faces.num_images)).astype(np.int64))
    rows = faces.read(index)
    sound = np.array([not error for error in rows.errors])
    subset = faces.subset(index[sound])
    labels = rows.label[sound]
    source = RecordImages(path, subset)
    return EvalFaces(source, color_order_of(source, color_order)), None if (labels < 0).any() else labels
