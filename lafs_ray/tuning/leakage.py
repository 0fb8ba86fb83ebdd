"""Nobody is judged on who was trained on, and nothing selected by is tested on.

What can be seen: the same set, the same persons among generated faces (their numbers stand beside
the files), and images that occur in both, byte for byte, among records drawn at random. What can
not: a person of one set under another number, in other pictures, in the other set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.verification_pairs import read_pairs
from lafs_ray.errors import UserError
from lafs_ray.tuning.config import EvalSets
from lafs_ray.tuning.trial_config import Sweep

# Records of a set whose images are compared. A set that holds a hundredth of the other's images
# shows up among as many with a chance of 1 - 0.99^2048, which is all but sure.
SAMPLED = 2048


@dataclass(frozen=True)
class FaceFiles:
    """Faces that are trained or judged on.

    Args:
        key: the setting that names them.
        path: where they lie.
        is_pairs: whether it is a pair file; else records.
    """

    key: str
    path: str
    is_pairs: bool = False

    @cached_property
    def faces(self) -> FaceSet:
        """The records."""
        return open_faces(self.path)

    @cached_property
    def population(self) -> tuple[int, range] | None:
        """Seed and numbers of generated persons; None for any other faces."""
        beside = f"{self.path}.json" if self.is_pairs else _folder_of(self.path, "generated.json")
        if not filesystem.exists(beside):
            return None
        try:
            content = json.loads(filesystem.read_bytes(beside))
            if self.is_pairs:
                people = content["identities"]
                numbers = range(people["first"], people["stop"], people["step"])
            else:
                first = content["first_identity"]
                numbers = range(first, first + content["num_identities"])
            return int(content["seed"]), numbers
        except (ValueError, KeyError, TypeError):
            return None

    @cached_property
    def digests(self) -> frozenset[bytes]:
        """Of its images, or of those drawn at random."""
        if self.is_pairs:
            images: Iterable[bytes] = read_pairs(self.path).images
        else:
            count = self.faces.num_images
            drawn = np.arange(count)
            if count > SAMPLED:
                drawn = np.sort(np.random.default_rng(0).choice(count, SAMPLED, replace=False))
            images = self.faces.read(drawn).images
        return frozenset(hashlib.blake2b(one, digest_size=16).digest() for one in images if one)


def _folder_of(path: str, name: str) -> str:
    return filesystem.join(path if filesystem.is_folder(path) else filesystem.parent(path), name)


def overlaps(sweep: Sweep) -> Iterator[str]:
    """A line for each set that is judged on and trained on, or selected by and tested on."""
    config = sweep.config
    selected = [*judged("objective", config.objective)]
    tested = [*judged("confirm", config.confirm)]
    trained = [*trained_on(sweep)]
    for one in (*selected, *tested):
        for other in trained:
            if reason := shared(one, other):
                yield (
                    f"{one.key}: {one.path} and {other.key}, {other.path}, which is trained on, "
                    f"{reason}"
                )
    for one in tested:
        for other in selected:
            if reason := shared(one, other):
                yield (
                    f"{one.key}: {one.path} and {other.key}, {other.path}, which the sweep "
                    f"selects by, {reason}"
                )


def judged(section: str, judges: EvalSets) -> Iterator[FaceFiles]:
    """The files of a section."""
    if judges.pairs is not None:
        yield FaceFiles(f"{section}.pairs", judges.pairs, is_pairs=True)
    if judges.identities is not None:
        yield FaceFiles(f"{section}.identities", judges.identities)


def trained_on(sweep: Sweep) -> Iterator[FaceFiles]:
    """The sets that trials train on, and those of the runs that they start from.

    They are followed as far back as the runs' folders are there.
    """
    trees: list[tuple[str, Mapping[str, Any]]] = [
        ("settings", sweep.default.model_dump(mode="json"))
    ]
    if sweep.default_finetune is not None:
        trees.append(("finetune.settings", sweep.default_finetune.model_dump(mode="json")))
    for key, dimension in sweep.config.space.items():
        if key.startswith("start.") or key == "landmarks.weights":
            section, name = key.split(".")
            trees += [(f"space.{key}", {section: {name: path}}) for path in dimension.values]
    seen: set[str] = set()
    while trees:
        source, tree = trees.pop(0)
        path = tree.get("data", {}).get("path")
        if path is not None and filesystem.absolute(path) not in seen:
            seen.add(filesystem.absolute(path))
            yield FaceFiles(f"{source}: data.path", path)
        for start in _starts(tree):
            if start not in seen and (config := _run_config(start)) is not None:
                seen.add(start)
                trees.append((f"run {start}", config))


def _starts(tree: Mapping[str, Any]) -> list[str]:
    start, landmarks = tree.get("start") or {}, tree.get("landmarks") or {}
    named: Sequence[Any] = (
        start.get("transformer"),
        start.get("landmarks"),
        landmarks.get("weights"),
    )
    return [path for path in named if isinstance(path, str)]


def _run_config(path: str) -> Mapping[str, Any] | None:
    """The configuration of the run in a folder; None where it is no run of ours."""
    try:
        uri = filesystem.join(path, "config.json")
        content = json.loads(filesystem.read_bytes(uri)) if filesystem.exists(uri) else {}
    except (UserError, ValueError):
        return None
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) else None


def shared(one: FaceFiles, other: FaceFiles) -> str | None:
    """What two sets have in common, in words; None where nothing is seen.

    A set that a run was once trained on and that is gone cannot be compared: nothing is seen.
    """
    if one.is_pairs == other.is_pairs and filesystem.absolute(one.path) == filesystem.absolute(
        other.path
    ):
        return "are one file"
    try:
        both_sets = not one.is_pairs and not other.is_pairs
        if both_sets and one.faces.fingerprint == other.faces.fingerprint:
            return "are the same set"
        if one.population is not None and other.population is not None:
            same_seed = one.population[0] == other.population[0]
            people = set(one.population[1]) & set(other.population[1]) if same_seed else set()
            if people:
                return f"share {len(people)} generated persons, such as number {min(people)}"
        images = one.digests & other.digests
    except UserError:
        return None
    return f"share {len(images)} images among those compared" if images else None
