"""Columns of encoded images in Parquet: Hugging Face's struct (`bytes`, `path`), or a binary column."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from lafs_ray.data.io import reading
from lafs_ray.data.io.text_table import DAMAGE

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "face")


def has_images(uri: str) -> bool:
    """Return whether a file is Parquet with a column of images, not a list of paths or points.

    Raises:
        DataError: it cannot be read from its storage.
    """
    try:
        with reading.open_input(uri) as file:
            return bool(image_columns(pq.read_schema(file)))
    except DAMAGE:
        return False


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the names of columns with images: those of usual names, else the only one of such a type."""
    found = [field.name for field in schema if _is_image(field.type)]
    structs = [name for name in found if pa.types.is_struct(schema.field(name).type)]
    usual = [name for name in _IMAGE_NAMES if name in found]
    return usual[:1] or structs or [name for name in found if name.lower().endswith("image")]


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any((pa.types.is_binary(kind), pa.types.is_large_binary(kind), pa.types.is_binary_view(kind)))
