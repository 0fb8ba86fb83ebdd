"""The lists of IJB-B and IJB-C in insightface's text formats: images, templates, pairs.

    <folder>/loose_crop/                            pictures
    <folder>/meta/*_name_5pts_score.txt             name x1 y1 … x5 y5 score
    <folder>/meta/*_face_tid_mid.txt                name template media, line for line as above
    <folder>/meta/*_template_pair_label.txt         template template 0|1

IJB-C has 15.7 million pairs: pyarrow reads them in seconds. Only a file that it refuses is read
line by line, to name the line, or to accept columns parted by other white space.
Letters: N images, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lafs_ray.data.eval_sets import TemplateFaces
from lafs_ray.data.io import filesystem
from lafs_ray.errors import DataError

_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
_IMAGES = {"name": pa.string(), **dict.fromkeys([*_POINTS, "score"], pa.float64())}
_MEDIAS = {"name": pa.string(), "template": pa.int64(), "media": pa.int64()}
_PAIRS = {"template": pa.int64(), "other template": pa.int64(), "same": pa.int64()}
_KINDS: dict[pa.DataType, Any] = {pa.string(): str, pa.int64(): np.int64, pa.float64(): float}
_WORDS = {pa.string(): "text", pa.int64(): "a whole number", pa.float64(): "a number"}
_SHOWN = 5

Int64s = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Templates:
    """A template protocol: who is in which image is known through templates alone.

    Args:
        uri: its folder.
        faces: the images.
        scores: of the detector, float64 [N].
        templates: template of each image, int64 [N].
        medias: photograph or video of each image, int64 [N].
        first: one template of each pair, int64 [P].
        second: the other, int64 [P].
        same: whether they show one person, bool [P].
    """

    uri: str
    faces: TemplateFaces
    scores: NDArray[np.float64]
    templates: Int64s
    medias: Int64s
    first: Int64s
    second: Int64s
    same: NDArray[np.bool_]


def open_templates(folder: str) -> Templates:
    """Read the three lists, and see that they fit each other and the pictures.

    Args:
        folder: such as `ijb/IJBC`; the lists may also lie in it directly.

    Raises:
        DataError: a list or picture is missing; a line has other columns (file and line); the lists
            contradict each other; a pair names a template without images.
    """
    images_uri = _find(folder, "_name_5pts_score.txt")
    medias_uri = _find(folder, "_face_tid_mid.txt")
    pairs_uri = _find(folder, "_template_pair_label.txt")
    images, medias = _read(images_uri, _IMAGES), _read(medias_uri, _MEDIAS)
    _check_same_images(images_uri, images["name"], medias_uri, medias["name"])
    pairs = _read(pairs_uri, _PAIRS)
    _check_pairs(pairs_uri, pairs, medias_uri, medias["template"])
    landmarks = np.stack([images[name] for name in _POINTS], axis=1).reshape(-1, 5, 2)
    _check_finite(images_uri, landmarks, images["score"])
    pictures = filesystem.join(folder, "loose_crop")
    names = images["name"].tolist()
    _check_pictures(images_uri, pictures, names)
    return Templates(
        uri=folder,
        faces=TemplateFaces(pictures, names, landmarks),
        scores=images["score"],
        templates=medias["template"],
        medias=medias["media"],
        first=pairs["template"],
        second=pairs["other template"],
        same=pairs["same"] == 1,
    )


def _find(folder: str, ending: str) -> str:
    """The one file with this ending in the folder or its `meta`."""
    places = [filesystem.join(folder, "meta"), folder]
    found = [
        filesystem.join(place, name)
        for place in places
        for name in filesystem.list_names(place)
        if name.endswith(ending)
    ]
    if len(found) != 1:
        raise DataError(
            f"templates in {folder}",
            found=f"{len(found)} files *{ending}" + "".join(f"\n    {uri}" for uri in found),
            expected=f"one *{ending} in the folder or its meta/",
            fix="give the folder of one protocol in insightface's layout, such as ijb/IJBC",
        )
    return found[0]


def _read(uri: str, columns: dict[str, pa.DataType]) -> Columns:
    try:
        with filesystem.open_input(uri) as file:
            table = csv.read_csv(
                file,
                csv.ReadOptions(column_names=list(columns)),
                csv.ParseOptions(delimiter=" ", quote_char=False),
                csv.ConvertOptions(column_types=columns, null_values=[]),
            )
    except pa.ArrowInvalid:
        return _read_lines(uri, columns)
    return {name: table[name].to_numpy() for name in columns}


def _read_lines(uri: str, columns: dict[str, pa.DataType]) -> Columns:
    """The same, line by line, with any white space between columns."""
    values: list[list[Any]] = [[] for _ in columns]
    for number, line in enumerate(
        filesystem.read_bytes(uri).decode(errors="replace").splitlines(), 1
    ):
        words = line.split()
        if not words:
            continue
        if len(words) != len(columns):
            raise _bad_line(uri, number, f"{len(words)} columns: {line[:80]!r}", columns)
        for column, word, (name, kind) in zip(values, words, columns.items(), strict=True):
            try:
                column.append(_KINDS[kind](word))
            except (ValueError, OverflowError):
                found = f"{word!r} as {name}, which is {_WORDS[kind]}"
                raise _bad_line(uri, number, found, columns) from None
    if not values[0]:
        raise DataError(
            uri,
            found="no line",
            expected=f"lines of {len(columns)} columns: {' '.join(columns)}",
            fix="take the list from the protocol's publisher again",
        )
    return {
        name: np.array(column, dtype=object if kind == pa.string() else _KINDS[kind])
        for (name, kind), column in zip(columns.items(), values, strict=True)
    }


def _bad_line(uri: str, number: int, found: str, columns: dict[str, pa.DataType]) -> DataError:
    expected = f"{len(columns)} columns: {' '.join(columns)}"
    fix = "mend the line; the three lists must be of one protocol"
    return DataError(f"{uri}, line {number}", found=found, expected=expected, fix=fix)


def _check_same_images(
    images_uri: str, images: NDArray[Any], medias_uri: str, medias: NDArray[Any]
) -> None:
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
                found=f"template {pairs[name][unknown[0]]}, of which there is no image; "
                f"{len(unknown)} such pairs",
                expected=f"templates of {medias_uri}",
                fix="use the lists of one protocol",
            )
    odd = np.flatnonzero((pairs["same"] != 0) & (pairs["same"] != 1))
    if len(odd):
        raise DataError(
            f"{uri}, pair {odd[0] + 1}",
            found=f"{pairs['same'][odd[0]]} as label",
            expected="1 (same person) or 0",
            fix="take the list from the protocol's publisher again",
        )


def _check_finite(uri: str, landmarks: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(np.isfinite(landmarks).all(axis=(1, 2)) & np.isfinite(scores)))
    if len(bad):
        raise DataError(
            f"{uri}, image {bad[0] + 1}",
            found="a landmark or score that is not finite",
            expected="numbers",
            fix="detect the face anew",
        )


def _check_pictures(uri: str, folder: str, names: list[str]) -> None:
    """One listing of the folder; only names that it lacks are asked for one by one."""
    present = set(filesystem.list_names(folder))
    missing: list[str] = []
    for name in names:
        if name not in present and not filesystem.exists(filesystem.join(folder, name)):
            missing.append(name)
            if len(missing) == _SHOWN:
                break
    if missing:
        more = ", …" if len(missing) == _SHOWN else ""
        raise DataError(
            uri,
            found=f"pictures that are not in {folder}: {', '.join(missing)}{more}",
            expected="a picture for every line",
            fix="copy the protocol's loose_crop folder there",
        )
