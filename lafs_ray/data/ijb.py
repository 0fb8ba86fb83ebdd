"""Read IJB-B and IJB-C in insightface's text formats: lists of images, templates and pairs.

    <folder>/loose_crop/                            pictures
    <folder>/meta/*_name_5pts_score.txt             name x1 y1 … x5 y5 score
    <folder>/meta/*_face_tid_mid.txt                name template media, line for line as above
    <folder>/meta/*_template_pair_label.txt         template template 0|1

IJB-C has 15.7 million pairs, which pyarrow reads in seconds. Columns may be separated by any white space. Letters: N
images, P pairs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lafs_ray.data.eval_sets import EvalFaces, ImageFiles
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.text_table import read_text_table
from lafs_ray.errors import DataError

_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
_IMAGES = {"name": pa.string(), **dict.fromkeys([*_POINTS, "score"], pa.float64())}
_MEDIAS = {"name": pa.string(), "template": pa.int64(), "media": pa.int64()}
_PAIRS = {"template": pa.int64(), "other template": pa.int64(), "same": pa.int64()}
_NAMED = 5
_MEDIA_LIST = "_face_tid_mid.txt"
_FIX = "correct the row; the three lists must be of one protocol"

Int64s = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class TemplateImages:
    """Images of templates: a template is the images of one identity in one scene.

    Args:
        faces: the images, aligned by their landmarks.
        scores: face detection scores, float64 [N].
        templates: template of each image, int64 [N].
        medias: photograph or video of each image, int64 [N].
    """

    faces: EvalFaces
    scores: NDArray[np.float64]
    templates: Int64s
    medias: Int64s


@dataclass(frozen=True, eq=False)
class Templates(TemplateImages):
    """A template protocol, 1:1.

    Args:
        uri: its folder.
        first: first template of each pair, int64 [P].
        second: second template of each pair, int64 [P].
        same: whether a pair shows one identity, bool [P].
    """

    uri: str
    first: Int64s
    second: Int64s
    same: NDArray[np.bool_]


def open_templates(folder: str) -> Templates:
    """Read the three lists, and check them against each other and the pictures.

    Args:
        folder: such as `ijb/IJBC`; the lists may also be in it directly.

    Raises:
        DataError: a list or picture is missing; a row has other columns (file and row); the lists contradict each
            other; a pair names a template without images.
    """
    images = open_template_images(folder)
    pairs_uri = _find(folder, "_template_pair_label.txt")
    pairs = read_list(pairs_uri, _PAIRS)
    _check_pairs(pairs_uri, pairs, _find(folder, _MEDIA_LIST), images.templates)
    return Templates(
        images.faces,
        images.scores,
        images.templates,
        images.medias,
        uri=folder,
        first=pairs["template"],
        second=pairs["other template"],
        same=pairs["same"] == 1,
    )


def open_template_images(folder: str) -> TemplateImages:
    """Read the lists of images and media, and check them against each other and the pictures.

    Raises:
        DataError: as `open_templates`.
    """
    images_uri, medias_uri = _find(folder, "_name_5pts_score.txt"), _find(folder, _MEDIA_LIST)
    images, medias = read_list(images_uri, _IMAGES), read_list(medias_uri, _MEDIAS)
    _check_same_images(images_uri, images["name"], medias_uri, medias["name"])
    landmarks = np.stack([images[name] for name in _POINTS], axis=1).reshape(-1, 5, 2)
    _check_finite(images_uri, landmarks, images["score"])
    pictures = filesystem.join(folder, "loose_crop")
    names = images["name"].tolist()
    _check_pictures(images_uri, pictures, names)
    faces = EvalFaces(ImageFiles(pictures, names, landmarks))
    return TemplateImages(faces, images["score"], medias["template"], medias["media"])


def _find(folder: str, ending: str) -> str:
    """Return the one file with this ending in the folder or its `meta`."""
    folders = [filesystem.join(folder, "meta"), folder]
    found = [
        filesystem.join(one, name) for one in folders for name in filesystem.list_names(one) if name.endswith(ending)
    ]
    if len(found) != 1:
        raise DataError(
            f"templates in {folder}",
            found=f"{len(found)} files *{ending}" + "".join(f"\n    {uri}" for uri in found),
            expected=f"one *{ending} in the folder or its meta/",
            fix="give the folder of one protocol in insightface's layout, such as ijb/IJBC",
        )
    return found[0]


def read_list(uri: str, columns: dict[str, pa.DataType], fix: str = _FIX) -> Columns:
    """Read a list whose columns are separated by white space of any kind.

    Raises:
        DataError: see `read_text_table`.
    """
    data = filesystem.read_bytes(uri)
    if any(white in data for white in (b"\t", b"  ", b" \n", b"\r")):
        data = b"\n".join(b" ".join(line.split()) for line in data.splitlines())
    return read_text_table(uri, io.BytesIO(data), columns, delimiter=" ", fix=fix)


def _check_same_images(images_uri: str, images: NDArray[Any], medias_uri: str, medias: NDArray[Any]) -> None:
    if len(images) != len(medias):
        raise DataError(
            medias_uri,
            found=f"{len(medias)} images",
            expected=f"{len(images)}, as in {images_uri}",
            fix="use the lists of one protocol",
        )
    for number, (image, media) in enumerate(zip(images.tolist(), medias.tolist(), strict=True)):
        if image != media and image.rpartition(".")[0] != media.rpartition(".")[0]:
            raise DataError(
                f"{medias_uri}, image {number + 1}",
                found=media,
                expected=f"{image}, as in {images_uri}",
                fix="use the lists of one protocol, in their order",
            )


def _check_pairs(uri: str, pairs: Columns, medias_uri: str, templates: Int64s) -> None:
    known = np.unique(templates)
    for name in ("template", "other template"):
        unknown = np.flatnonzero(~np.isin(pairs[name], known))
        if len(unknown):
            raise DataError(
                f"{uri}, pair {unknown[0] + 1}",
                found=f"template {pairs[name][unknown[0]]}, which has no image; such pairs: {len(unknown)}",
                expected=f"templates of {medias_uri}",
                fix="use the lists of one protocol",
            )
    invalid = np.flatnonzero((pairs["same"] != 0) & (pairs["same"] != 1))
    if len(invalid):
        raise DataError(
            f"{uri}, pair {invalid[0] + 1}",
            found=f"{pairs['same'][invalid[0]]} as label",
            expected="1 (same identity) or 0",
            fix="take the list from the protocol's publisher again",
        )


def _check_finite(uri: str, landmarks: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(np.isfinite(landmarks).all(axis=(1, 2)) & np.isfinite(scores)))
    if len(bad):
        raise DataError(
            f"{uri}, image {bad[0] + 1}",
            found="a landmark or score that is not finite",
            expected="finite numbers",
            fix="detect the face again",
        )


def _check_pictures(uri: str, folder: str, names: list[str]) -> None:
    """Check that all pictures exist: one listing, then names that it lacks one by one."""
    present = set(filesystem.list_names(folder))
    missing: list[str] = []
    for name in names:
        if name not in present and not filesystem.exists(filesystem.join(folder, name)):
            missing.append(name)
            if len(missing) == _NAMED:
                break
    if missing:
        more = ", …" if len(missing) == _NAMED else ""
        raise DataError(
            uri,
            found=f"pictures that are not in {folder}: {', '.join(missing)}{more}",
            expected="a picture for every row",
            fix="copy the protocol's loose_crop folder there",
        )
