"""Pairs of images for verification: those of LFW's `pairs.txt` in a folder, or drawn from a labeled set.

Both have their folds one after the other, as 10-fold verification splits them: of LFW those of the list; of a labeled
set an equal number of pairs in each, half of them of one identity, and no identity in two folds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.listing import read_files
from lafs_ray.data.io.walk import find_images
from lafs_ray.data.verification_pairs import Pairs
from lafs_ray.errors import DataError

_NUMBERED = re.compile(r"(.+)_(\d+)")
_NAMED = 5
_TRIES = 100

Image = tuple[str, int]
"""Name of an identity, and number of its image."""


def listed_pairs(folder: str, pairs_list: str) -> Pairs:
    """Read the images that a list in the format of LFW's `pairs.txt` names.

    Args:
        folder: of the images: `Name/Name_0001.jpg`, `Name/0001.jpg` or `Name_0001.png`, at any depth.
        pairs_list: lines `Name 1 4` (one identity) and `Name 1 Other 2`; a first line of counts is passed over.

    Raises:
        DataError: a line has another form, an image is missing or there twice, or a file cannot be read.
    """
    rows, same = _read_list(pairs_list)
    names = _find(folder, pairs_list, {image for row in rows for image in row})
    wanted = sorted(names)
    contents = {}
    for image, data in zip(wanted, read_files(folder, [names[image] for image in wanted]), strict=True):
        if isinstance(data, DataError):
            raise data
        contents[image] = data
    return Pairs([contents[image] for row in rows for image in row], np.array(same))


def _read_list(uri: str) -> tuple[list[tuple[Image, Image]], list[bool]]:
    """Return the images of each pair, and whether they show one identity."""
    expected = "lines `Name 1 4` and `Name 1 Other 2`, as in LFW's pairs.txt"
    fix = "take the list from its publisher again"
    try:
        lines = filesystem.read_bytes(uri).decode().splitlines()
    except UnicodeDecodeError:
        raise DataError(uri, found="no UTF-8 text", expected=expected, fix=fix) from None
    rows, same = list[tuple[Image, Image]](), list[bool]()
    for number, line in enumerate(lines, 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and all(field.strip().isdecimal() for field in fields)):
            continue
        try:
            if len(fields) == 3:
                rows.append(((fields[0], int(fields[1])), (fields[0], int(fields[2]))))
            elif len(fields) == 4:
                rows.append(((fields[0], int(fields[1])), (fields[2], int(fields[3]))))
            else:
                raise ValueError
        except ValueError:
            raise DataError(f"{uri}, line {number}", found=repr(line[:80]), expected=expected, fix=fix) from None
        same.append(len(fields) == 3)
    if not rows:
        raise DataError(uri, found="no pairs", expected=expected, fix=fix)
    return rows, same


def _find(folder: str, pairs_list: str, wanted: set[Image]) -> dict[Image, str]:
    """Return the file of each image, relative to the folder."""
    found: dict[Image, str] = {}
    for entry in find_images(folder)[0]:
        path = PurePosixPath(entry.name)
        match = _NUMBERED.fullmatch(path.stem)
        image = (
            (match[1], int(match[2])) if match else (path.parent.name, int(path.stem) if path.stem.isdecimal() else -1)
        )
        if image in wanted and image in found:
            raise DataError(
                folder,
                found=f"{found[image]} and {entry.name}",
                expected=f"one image {image[1]} of {image[0]}",
                fix="give the folder of one version of the images",
            )
        if image in wanted:
            found[image] = entry.name
    if missing := sorted(wanted - set(found)):
        named = ", ".join(f"{name}_{number:04d}" for name, number in missing[:_NAMED])
        raise DataError(
            pairs_list,
            found=f"{len(missing)} of {len(wanted)} images that are not in {folder}: {named}",
            expected="files such as Name/Name_0001.jpg for every pair",
            fix="give the folder of the images of this list; an evaluation leaves no pair out",
        )
    return found


def drawn_pairs(path: str, num_pairs: int, folds: int, seed: int) -> Pairs:
    """Draw pairs from a labeled set.

    Args:
        path: of the set, as `data.path`.
        num_pairs: of all folds; a multiple of 2 · folds.
        folds: parts of the identities.
        seed: of the choice.

    Raises:
        DataError: the set has no labels, or too few identities or images for so many different pairs.
    """
    if not folds >= 1 or num_pairs < 2 * folds or num_pairs % (2 * folds):
        found, expected = f"{num_pairs} pairs in {folds} folds", "a multiple of 2 pairs per fold, half of one identity"
        raise DataError("--pairs", found=found, expected=expected, fix="choose another number of pairs")
    faces = open_faces(path)
    labels = faces.labels()
    generator = np.random.default_rng([seed, num_pairs, folds])
    identities = generator.permutation(np.unique(labels[labels >= 0]))
    pairs, same = list[tuple[int, int]](), list[bool]()
    for part in np.array_split(identities, folds):
        members = [np.flatnonzero(labels == identity) for identity in part.tolist()]
        half = num_pairs // folds // 2
        pairs += _distinct(path, half, generator, members, is_same=True)
        pairs += _distinct(path, half, generator, members, is_same=False)
        same += [True] * half + [False] * half
    numbers = np.array(pairs).ravel()
    rows = faces.read(numbers)
    if bad := next(filter(None, rows.errors), None):
        raise DataError(path, found=bad, expected="sound records", fix="repair the record, or choose another --seed")
    return Pairs(rows.images, np.array(same))


def _distinct(
    path: str, count: int, generator: np.random.Generator, members: Sequence[NDArray[np.int64]], *, is_same: bool
) -> list[tuple[int, int]]:
    """Draw different pairs of images of one identity each, or of two."""
    usable = [one for one in members if len(one) > 1] if is_same else list(members)
    chosen = dict[tuple[int, int], None]()
    for _ in range(_TRIES * count if len(usable) > (not is_same) else 0):
        if is_same:
            first, second = generator.choice(usable[generator.integers(len(usable))], 2, replace=False).tolist()
        else:
            one, other = generator.choice(len(usable), 2, replace=False).tolist()
            first, second = (int(generator.choice(usable[number])) for number in (one, other))
        chosen[min(first, second), max(first, second)] = None
        if len(chosen) == count:
            return list(chosen)
    kind = "one identity" if is_same else "two identities"
    raise DataError(
        path,
        found=f"{len(chosen)} different pairs of {kind} among {len(members)} identities of a fold",
        expected=f"{count} of them in each fold",
        fix="reduce --pairs or --folds, or take a larger set",
    )
