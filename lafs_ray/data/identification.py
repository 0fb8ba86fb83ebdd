"""Read identification (1:N) protocols: a gallery, or several, and queries.

Three layouts, told apart by what the folder holds:

    meta/*_1N_gallery_*.csv, *_1N_probe_mixed.csv       IJB-B/C, beside the lists of `ijb.py`; the first two columns are
                                                        template and subject
    [Testing_Set/]Gallery_Match, Probe,                 TinyFace: aligned faces 3_1.jpg …, of identity 3; distractors
        Gallery_Distractor                              have no mates
    gallery*.txt, probe.txt                             lists of `<image> <identity>`, paths relative to the folder; a
                                                        negative identity is a distractor or a query that has none

Letters: N images, M templates.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.data.eval_sets import EvalFaces, ImageFiles
from lafs_ray.data.ijb import TemplateImages, open_template_images, read_list
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.text_table import DAMAGE
from lafs_ray.data.io.walk import find_images
from lafs_ray.errors import DataError

logger = logging.getLogger(__name__)

Int64s = NDArray[np.int64]

_DISTRACTOR = -1
_LISTED = {"image": pa.string(), "identity": pa.int64()}


@dataclass(frozen=True, eq=False)
class SearchList:
    """Templates of a gallery, or the queries.

    Args:
        name: of the list.
        templates: their numbers, each once, int64 [M].
        identities: of each, int64 [M]; negative: none.
    """

    name: str
    templates: Int64s
    identities: Int64s


@dataclass(frozen=True, eq=False)
class Identification:
    """An identification protocol.

    Args:
        uri: its folder.
        images: of all templates.
        galleries: each is searched by all queries.
        queries: what is searched for.
    """

    uri: str
    images: TemplateImages
    galleries: tuple[SearchList, ...]
    queries: SearchList


def open_identification(folder: str) -> Identification:
    """Read a protocol, and check its lists against each other and the pictures.

    Raises:
        DataError: the folder has none of the layouts; a list or picture is missing or damaged; a list names a template
            without images, or one template with two identities; a gallery or the queries are empty.
    """
    names, meta = filesystem.list_names(folder), filesystem.join(folder, "meta")
    for place in (meta, folder):
        if any("_1N_gallery_" in name for name in filesystem.list_names(place)):
            return _open_ijb(folder, place)
    for place in (filesystem.join(folder, "Testing_Set"), folder):
        if filesystem.is_folder(filesystem.join(place, "Gallery_Match")):
            return _open_tinyface(folder, place)
    if "probe.txt" in names:
        return _open_lists(folder, sorted(n for n in names if n.startswith("gallery") and n.endswith(".txt")))
    raise DataError(
        f"identification in {folder}",
        found=f"files {', '.join(sorted(names)[:5])}" if names else "no file",
        expected="meta/*_1N_gallery_*.csv, Gallery_Match and Probe, or gallery.txt and probe.txt",
        fix="give the folder of IJB-B/C or of TinyFace, or write the two lists (docs/data.md)",
    )


def _open_ijb(folder: str, meta: str) -> Identification:
    images = open_template_images(folder)
    found = sorted(name for name in filesystem.list_names(meta) if "_1N_gallery_" in name)
    queries = [name for name in filesystem.list_names(meta) if name.endswith("_1N_probe_mixed.csv")]
    if len(queries) != 1:
        raise DataError(
            f"identification in {folder}",
            found=f"{len(queries)} files *_1N_probe_mixed.csv",
            expected="one, beside the galleries",
            fix="give the folder of one protocol in insightface's layout, such as ijb/IJBC",
        )
    known = np.unique(images.templates)
    lists = [_read_subjects(filesystem.join(meta, name), known) for name in (*found, *queries)]
    return Identification(folder, images, tuple(lists[:-1]), lists[-1])


def _read_subjects(uri: str, known: Int64s) -> SearchList:
    """Read template and subject, the first two columns of a CSV with a heading and a row for each image."""
    try:
        table = csv.read_csv(io.BytesIO(filesystem.read_bytes(uri)))
        columns = [table.column(number).to_numpy().astype(np.int64, casting="safe") for number in (0, 1)]
    except (*DAMAGE, TypeError) as error:
        raise DataError(
            uri,
            found=str(error).splitlines()[0],
            expected="a CSV file whose first two columns are TEMPLATE_ID and SUBJECT_ID, integers",
            fix="take the list from the protocol's publisher again",
        ) from None
    pairs = np.unique(np.stack(columns, axis=1), axis=0)
    templates, counts = np.unique(pairs[:, 0], return_counts=True)
    _refuse(uri, templates[counts > 1], "which has two subjects")
    _refuse(uri, templates[~np.isin(templates, known)], "which has no image in *_face_tid_mid.txt")
    return _checked(SearchList(filesystem.file_name(uri).removesuffix(".csv"), templates, pairs[:, 1]), uri)


def _refuse(uri: str, templates: Int64s, what: str) -> None:
    if len(templates):
        raise DataError(
            uri,
            found=f"template {templates[0]}, {what}; such templates: {len(templates)}",
            expected="templates of one subject with at least one image",
            fix="use the lists of one protocol",
        )


def _open_tinyface(uri: str, folder: str) -> Identification:
    parts = {name: _image_names(folder, name) for name in ("Gallery_Match", "Gallery_Distractor", "Probe")}
    names = [filesystem.join(part, name) for part, found in parts.items() for name in found]
    identities = [
        _DISTRACTOR if part == "Gallery_Distractor" else _leading_number(folder, part, name)
        for part, found in parts.items()
        for name in found
    ]
    num_gallery = len(names) - len(parts["Probe"])
    numbers, labels = np.arange(len(names)), np.array(identities, dtype=np.int64)
    gallery = SearchList("gallery", numbers[:num_gallery], labels[:num_gallery])
    queries = SearchList("queries", numbers[num_gallery:], labels[num_gallery:])
    _checked(gallery, f"{folder}/Gallery_Match")
    return Identification(uri, _single_images(folder, names), (gallery,), _checked(queries, f"{folder}/Probe"))


def _image_names(folder: str, part: str) -> list[str]:
    where = filesystem.join(folder, part)
    if not filesystem.is_folder(where):
        return []
    images, passed_over = find_images(where)
    for line in passed_over.lines():
        logger.warning("%s: %s", where, line)
    return sorted(image.name for image in images)


def _leading_number(folder: str, part: str, name: str) -> int:
    digits = name.rpartition("/")[2].partition("_")[0]
    if not digits.isdecimal():
        raise DataError(
            f"{folder}/{part}/{name}",
            found="a name without a number before its first _",
            expected="TinyFace's names, such as 3_1.jpg for identity 3",
            fix="keep the names of the data set, or write gallery.txt and probe.txt (docs/data.md)",
        )
    return int(digits)


def _open_lists(folder: str, galleries: list[str]) -> Identification:
    names: list[str] = []
    lists = []
    for name in (*galleries, "probe.txt"):
        uri = filesystem.join(folder, name)
        columns = read_list(uri, _LISTED, "correct the row: an image's path and its identity, an integer")
        numbers = np.arange(len(names), len(names) + len(columns["image"]))
        names += columns["image"].tolist()
        lists.append(_checked(SearchList(name.removesuffix(".txt"), numbers, columns["identity"]), uri))
    if not galleries:
        raise DataError(
            f"identification in {folder}",
            found="probe.txt without gallery.txt",
            expected="one list gallery*.txt or several",
            fix="write gallery.txt: an image's path and its identity in each line",
        )
    missing = [name for name in names if not filesystem.exists(filesystem.join(folder, name))]
    if missing:
        raise DataError(
            f"identification in {folder}",
            found=f"images that do not exist: {', '.join(missing[:5])}{', …' * (len(missing) > 5)}",
            expected="paths relative to the folder",
            fix="correct the lists",
        )
    return Identification(folder, _single_images(folder, names), tuple(lists[:-1]), lists[-1])


def _single_images(folder: str, names: list[str]) -> TemplateImages:
    """Return aligned images, each a template of its own."""
    numbers = np.arange(len(names))
    return TemplateImages(EvalFaces(ImageFiles(folder, names)), np.ones(len(names)), numbers, numbers)


def _checked(one: SearchList, uri: Any) -> SearchList:
    if not len(one.templates):
        raise DataError(str(uri), found="no image", expected="at least one", fix="give the complete protocol")
    return one
