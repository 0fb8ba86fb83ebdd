"""Embedding on Ray Data: tasks read and decode chunks of faces, actors embed them.

Each actor loads the network once. Chunks and batches are those of one process, and their order is kept, so the
embeddings do not depend on the number of workers.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext
from torch import nn

from lafs_ray.data.eval_sets import EvalFaces
from lafs_ray.engine.ray_session import configure_context, join_cluster
from lafs_ray.evaluation.embed import PixelRange, chunks, embed_chunk

_READ_CPUS = 0.25

Columns = dict[str, NDArray[Any]]


def _read(rows: Columns, source: ray.ObjectRef) -> Columns:
    """Read and decode the chunk of faces that a row names."""
    start, stop = int(rows["start"][0]), int(rows["stop"][0])
    return {"number": np.arange(start, stop), "face": ray.get(source).read(start, stop)}


class EmbedActor:
    """A stateful worker that keeps the network.

    Args:
        network: reference to it in the object store.
        device: where to compute.
        pixel_range: see `apply_network`.
    """

    def __init__(self, network: ray.ObjectRef, device: str, pixel_range: PixelRange) -> None:
        self._network = ray.get(network).to(device).eval()
        self._options = {"device": device, "pixel_range": pixel_range}

    def __call__(self, rows: Columns) -> Columns:
        """Embed one chunk."""
        embeddings = embed_chunk(self._network, rows["face"], **self._options)
        return {"number": rows["number"], "embedding": embeddings}


def connect_for(workers: int, device: str) -> None:
    """Join or start a cluster that has room for the actors.

    Raises:
        ConfigError: it has fewer CPUs or GPUs.
    """
    # The driver imported Ray Data before `join_cluster` could set its environment.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    join_cluster(
        workers + 1.0,
        f"--workers {workers} × 1 + 1 for reading",
        workers if device == "cuda" else 0,
        f"--workers {workers}, a GPU each",
    )


def embed_on_ray(
    network: nn.Module, source: EvalFaces, *, workers: int, device: str = "cpu", pixel_range: PixelRange = "training"
) -> NDArray[np.float32]:
    """Embed all faces and their mirror images: float32 [N, 2, D]; see `embed_faces`.

    Args:
        network: takes [B, 3, S, S]; sent to the actors through the object store.
        source: the faces; sent likewise.
        workers: actors that embed.
        device: cuda gives each actor a GPU.
        pixel_range: see `apply_network`.

    Raises:
        DataError: inside Ray's own error, see `find_user_error`.
    """
    items = [{"start": start, "stop": stop} for start, stop in chunks(source.num_images)]
    configure_context(DataContext.get_current(), workers + 1.0)
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(_read, batch_size=None, num_cpus=_READ_CPUS, fn_kwargs={"source": ray.put(source)})
        .map_batches(
            EmbedActor,
            batch_size=None,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
            num_gpus=1 if device == "cuda" else 0,
            fn_constructor_args=[ray.put(network.cpu()), device, pixel_range],
            udf_modifying_row_count=False,
        )
    )
    parts: list[NDArray[np.float32]] = []
    expected = itertools.count()
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        in_order = all(number == next(expected) for number in block["number"].tolist())
        assert in_order, f"Ray Data returned faces {block['number'][:3]}… out of order"
        parts.append(np.array(block["embedding"]))
    return np.concatenate(parts)
