"""Faces of audited sets as pictures on a page."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.embeddings import EmbeddedSet
from lafs_ray.audit.session import AuditedSet
from lafs_ray.data.eval_sets import ImageSource, open_images
from lafs_ray.data.images import decode_image
from lafs_ray.errors import DataError
from lafs_ray.report import html

_SIDE = 64
_PAIRS_IN_A_ROW = 6

Pair = tuple[EmbeddedSet, int, EmbeddedSet, int]


class Faces:
    """Pictures of rows; gray thumbnails where a face cannot be decoded, nothing where pictures were not read.

    Args:
        sets: the audited sets.
    """

    def __init__(self, sets: Sequence[AuditedSet]) -> None:
        self._sets = {id(one.embedded): one for one in sets}
        self._sources: dict[int, ImageSource] = {}

    def pairs(self, pairs: Sequence[Pair], scores: Sequence[float]) -> str:
        """Return a sheet of pairs, left and right, with their scores in the caption; empty without pictures."""
        shown = []
        for first, row, second, other in pairs:
            left = self._face(first, row)
            right = self._face(second, other) if other >= 0 else np.full((_SIDE, _SIDE, 3), 128, np.uint8)
            if left is None or right is None:
                return ""
            shown.append(np.concatenate([left, right], axis=1))
        if not shown:
            return ""
        figures = [
            html.figure(html.picture(face, f"pair {number + 1}"), f"{score:.3f}")
            for number, (face, score) in enumerate(zip(shown, scores, strict=False))
        ]
        return html.row(figures)

    def sheet(self, one: EmbeddedSet, rows: Sequence[int], caption: str) -> str:
        """Return a sheet of faces; empty without pictures."""
        faces = [face for row in rows if (face := self._face(one, row)) is not None]
        if not faces:
            return ""
        return html.figure(html.picture(html.contact_sheet(np.stack(faces), _PAIRS_IN_A_ROW), caption), caption)

    def _face(self, one: EmbeddedSet, row: int) -> NDArray[np.uint8] | None:
        pictures = self._sets[id(one)].pictures
        if pictures is None:
            return None
        source = self._sources.get(id(one))
        if source is None:
            source = self._sources[id(one)] = open_images(one.faces)
        number = int(pictures.numbers[row])
        try:
            data = source.read(number, number + 1)[0].data
            pixels = decode_image(data, color_order="bgr" if one.color_order == "bgr" else "rgb", size=None)
        except DataError:
            return np.full((_SIDE, _SIDE, 3), 128, np.uint8)
        face: NDArray[np.uint8] = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        return face
