"""Made sets of embeddings with pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

WIDTH = 32


def clustered(identities: NDArray[np.int64], spread: float = 0.15, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings around a direction for each identity, float32 [n, 32]."""
    centers = np.random.default_rng(seed).standard_normal((int(identities.max()) + 1, WIDTH))
    noise = np.random.default_rng([seed, 1, len(identities)]).standard_normal((len(identities), WIDTH))
    return (centers[identities] + spread * noise * np.sqrt(WIDTH) / 4).astype(np.float32)


def write_embeddings(
    path: Path, rows: NDArray[np.float32], labels: NDArray[np.int64] | None = None, jpegs: list[bytes] | None = None
) -> str:
    """A Parquet file as `jobs/embed.py` writes it, and its faces as files beside it."""
    keys = [f"{number:04}.jpg" for number in range(len(rows))]
    faces = ""
    if jpegs is not None:
        folder = path
        folder.mkdir()
        for key, jpeg in zip(keys, jpegs, strict=True):
            (folder / key).write_bytes(jpeg)
        faces = str(folder)
    columns = {
        "key": pa.array(keys),
        "label": pa.array([None] * len(rows) if labels is None else labels.tolist(), pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({"faces": faces, "faces_color_order": "rgb"})
    path = path.with_suffix(".parquet")
    pq.write_table(table, path)
    return str(path)
