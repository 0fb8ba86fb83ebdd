"""Evaluation of a frozen network on pair files, labeled sets, template and identification protocols.

In this process or on Ray workers, with equal results.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.cli.whiten import whitening_options
from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.identification import open_identification
from lafs_ray.data.ijb import open_templates
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.evaluation.embed import PixelRange
from lafs_ray.evaluation.neighbors import check_possible
from lafs_ray.evaluation.protocols import (
    RAW_PIXELS,
    WHITENED,
    Device,
    Embeddings,
    evaluate_identification,
    evaluate_identities,
    evaluate_pairs,
    evaluate_templates,
    local_embedding,
)
from lafs_ray.evaluation.results import EvalResult, picture_names, write_results
from lafs_ray.evaluation.templates import parse_mode
from lafs_ray.evaluation.whitening import WhiteningOptions, embed_pixels, fit_pixels, whitened_network
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights
from lafs_ray.training.checkpoint.checkpoint_file import versions
from lafs_ray.training.checkpoint.inference import inference_device, load_for_inference

_TRAINED = "trained network"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Network, inputs and options of an evaluation.

    Args:
        checkpoint: a checkpoint, the folder of a run, or a weights file.
        pairs: pair files.
        identities: labeled sets.
        templates: folders of template protocols.
        identification: folders of identification protocols.
        ks: numbers of neighbors for k-NN on labeled sets.
        modes: test modes of template and identification protocols, such as F1N1D1.
        baselines: whether raw pixels (pairs) and the untrained network are evaluated as well.
        whiten: how a further, whitened row of each embedding is made; None: no such row.
        color_order: what pair files and labeled sets decode to.
        resize: whether square images of pair files are scaled to 112 pixels.
        pixel_range: input range of the network, see `apply_network`.
        device: where it computes.
        workers: Ray workers that embed; 0 is this process.
        out: folder for results.json and pictures; None writes nothing.
        force: whether an earlier evaluation's files may be replaced.
    """

    checkpoint: str
    pairs: Sequence[str] = ()
    identities: Sequence[str] = ()
    templates: Sequence[str] = ()
    identification: Sequence[str] = ()
    ks: Sequence[int] = (1,)
    modes: Sequence[str] = ("F1N1D1",)
    baselines: bool = False
    whiten: WhiteningOptions | None = None
    color_order: ColorOrder = "rgb"
    resize: bool = False
    pixel_range: PixelRange = "training"
    device: Device = "cpu"
    workers: int = 0
    out: str | None = None
    force: bool = False


def evaluate_command(options: Namespace) -> None:
    """Evaluate as the command line requests."""
    whiten, values = whitening_options(options), vars(options)
    for name in ("whiten", "readout", "components", "neighbors"):
        values.pop(name)
    evaluate(Request(**values, whiten=whiten))


def evaluate(request: Request) -> None:
    """Print a table for each input, and write results.json and ROC plots if requested.

    Raises:
        UserError: an error in the request, the checkpoint or an input.
    """
    _check(request)
    if request.out is not None:
        require_persistent_path("--out", request.out)
        inputs = [*request.pairs, *request.identities, *request.templates, *request.identification]
        files = [one for one in (request.checkpoint, *inputs) if not filesystem.is_folder(one)]
        for name in ("results.json", *picture_names([*request.pairs, *request.templates])):
            filesystem.require_output(filesystem.join(request.out, name), force=request.force, inputs=files)
        filesystem.require_writable(request.out)
    jobs = [*_jobs(request)]
    trained = load_for_inference(request.checkpoint)
    embeddings = _embeddings(request, trained)
    results = []
    for job in jobs:
        results.append(job(embeddings))
        show(results[-1])
    if request.out is not None:
        header = {
            "checkpoint": trained.source,
            "step": trained.step,
            "architecture": asdict(trained.architecture),
            "pixel_range": request.pixel_range,
            "color_order": request.color_order,
            "device": request.device,
            "whitening": None if request.whiten is None else asdict(request.whiten),
            "versions": versions(),
        }
        write_results(request.out, header, results)


def _check(request: Request) -> None:
    if not (request.pairs or request.identities or request.templates or request.identification):
        raise ConfigError(
            "inputs",
            found="none",
            expected="pair files, --identities, --templates or --identification",
            fix="give something to evaluate on, such as lfw.bin",
        )
    if request.workers < 0:
        raise ConfigError("--workers", found=str(request.workers), expected="0 or more", fix="0 needs no Ray")
    if request.workers == 0:
        inference_device(request.device)


def _jobs(request: Request) -> Iterator[Callable[[Embeddings], EvalResult]]:
    """Yield an evaluation for each input, which is opened and checked here."""
    order, modes = request.color_order, [parse_mode(text) for text in request.modes]
    for uri in request.pairs:
        yield partial(evaluate_pairs, open_pairs(uri, order, resize=request.resize), raw_pixels=request.baselines)
    for path in request.identities:
        faces = open_labeled(path, order)
        check_possible(faces.labels, request.ks)
        yield partial(evaluate_identities, faces, ks=request.ks)
    for folder in request.templates:
        yield partial(evaluate_templates, open_templates(folder), modes=modes)
    for folder in request.identification:
        yield partial(evaluate_identification, open_identification(folder), modes=modes)


def _embeddings(request: Request, trained: NetworkWeights) -> Embeddings:
    networks = {_TRAINED: trained.embedder()}
    if request.baselines:
        networks = {"untrained network": trained.embedder(trained=False), **networks}
    embeddings: Embeddings = {}
    if request.whiten is not None:
        options: dict[str, Any] = {"color_order": request.color_order}
        if request.baselines:
            embeddings[RAW_PIXELS + WHITENED] = partial(embed_pixels, fit_pixels(request.whiten, **options))
        options |= {"device": request.device, "pixel_range": request.pixel_range}
        for name in list(networks):
            is_trained = name == _TRAINED
            networks[name + WHITENED] = whitened_network(trained, request.whiten, trained=is_trained, **options)
    if request.workers == 0:
        return embeddings | {
            name: local_embedding(network, request.device, request.pixel_range, progress=True)
            for name, network in networks.items()
        }
    # Imported here: without workers, Ray need not be installed.
    from lafs_ray.engine.ray_embed import connect_for, embed_on_ray

    connect_for(request.workers, request.device)
    return embeddings | {
        name: partial(
            embed_on_ray, network, workers=request.workers, device=request.device, pixel_range=request.pixel_range
        )
        for name, network in networks.items()
    }
