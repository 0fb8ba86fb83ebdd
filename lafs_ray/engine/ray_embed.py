"""Ray Data over a source of faces: tasks read and decode chunks, actors embed them.

Each actor loads the network once. Chunks and batches are those of one process, and their order is
kept, so the result depends on no number of workers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray
from torch import nn

from lafs_ray.data.eval_sets import EvalFaces
from lafs_ray.engine.ray_session import configure_context, join_cluster
from lafs_ray.evaluation.embed import PixelRange, chunks, embed_chunk

_READ_CPUS = 0.25
_BYTES_PER_FACE = 112 * 112 * 3

Columns = dict[str, NDArray[Any]]


class ChunkSource(Datasource):  # type: ignore[misc] # Ray ships no types
    """A datasource with one read task, hence one block, for each chunk of faces.

    Args:
        source: reference to the faces in the object store.
        num_images: how many they are.
    """

    def __init__(self, source: ray.ObjectRef, num_images: int) -> None:
        super().__init__()
        self._source, self._num_images = source, num_images

    def get_name(self) -> str:
        """Name of the read stage in Ray's displays."""
        return "Faces"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the decoded faces."""
        return self._num_images * _BYTES_PER_FACE

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - one task for each chunk, whatever Ray would like
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,  # noqa: ARG002 - part of Ray's interface
    ) -> list[ReadTask]:
        """One task for each chunk, in order."""
        return [
            ReadTask(
                partial(_read, self._source, start, stop),
                BlockMetadata(
                    num_rows=stop - start,
                    size_bytes=(stop - start) * _BYTES_PER_FACE,
                    exec_stats=None,
                    input_files=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for start, stop in chunks(self._num_images)
        ]


def _read(reference: ray.ObjectRef, start: int, stop: int) -> Iterator[pa.Table]:
    source: EvalFaces = ray.get(reference)
    faces = ArrowTensorArray.from_numpy(source.read(start, stop))
    yield pa.table({"number": np.arange(start, stop), "face": faces})


class EmbedActor:
    """A stateful worker: holds the network.

    Args:
        network: reference to it in the object store.
        device: where to compute.
        pixel_range: see `apply_network`.
    """

    def __init__(self, network: ray.ObjectRef, device: str, pixel_range: PixelRange) -> None:
        self._network = ray.get(network).to(device).eval()
        self._options = {"device": device, "pixel_range": pixel_range}

    def __call__(self, rows: Columns) -> Columns:
        """Embed one chunk; its numbers travel along."""
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
    network: nn.Module,
    source: EvalFaces,
    *,
    workers: int,
    device: str = "cpu",
    pixel_range: PixelRange = "training",
) -> NDArray[np.float32]:
    """Embeddings of all faces and of their mirror images, float32 [N, 2, D]; see `embed_faces`.

    Args:
        network: takes [B, 3, S, S]; travels to the actors through the object store.
        source: the faces; travels likewise.
        workers: actors that embed.
        device: cuda gives each actor a GPU.
        pixel_range: see `apply_network`.

    Raises:
        DataError: inside Ray's own error, see `find_user_error`.
    """
    num_chunks = len(chunks(source.num_images))
    configure_context(DataContext.get_current(), workers + 1.0)
    dataset = ray.data.read_datasource(
        ChunkSource(ray.put(source), source.num_images),
        override_num_blocks=num_chunks,
        num_cpus=_READ_CPUS,
    ).map_batches(
        EmbedActor,
        batch_size=None,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=min(workers, num_chunks)),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
        fn_constructor_args=[ray.put(network.cpu()), device, pixel_range],
        udf_modifying_row_count=False,
    )
    parts: list[NDArray[np.float32]] = []
    expected = itertools.count()
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        in_order = all(number == next(expected) for number in block["number"].tolist())
        assert in_order, f"Ray Data gave faces {block['number'][:3]}… out of order"
        parts.append(np.array(block["embedding"]))
    return np.concatenate(parts)
