"""Data leakage: evaluation sets must not overlap with training sets, nor test with selection sets.

Found are: the same set; the same identities among generated faces, whose numbers are in a file
beside them; and byte-identical images among randomly sampled records. Not found is an identity with another label and
other images in the other set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, PositiveInt, TypeAdapter

from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.io.json_text import checked, read_json
from lafs_ray.data.verification_pairs import read_pairs
from lafs_ray.errors import UserError
from lafs_ray.training.checkpoint.run_description import read_description, set_paths
from lafs_ray.tuning.config import EvalSets
from lafs_ray.tuning.trial_config import Sweep

# Records of a set whose images are compared. If a hundredth of the other set's images are among them, the sample has
# one with probability 1 - 0.99^2048, almost 1.
NUM_SAMPLED = 2048


_Number = Annotated[int, Field(ge=0, le=100_000_000)]


class _Range(BaseModel):
    first: _Number
    stop: _Number
    step: PositiveInt


class _GeneratedPairs(BaseModel):
    """Description that jobs/generate_faces.py writes beside a pair file."""

    seed: int
    identities: _Range


class _Generated(BaseModel):
    """The same for a training set, `generated.json` in its folder."""

    seed: int
    first_identity: _Number
    num_identities: _Number


@dataclass(frozen=True)
class FaceFile:
    """A training or evaluation set.

    Args:
        key: the setting that names it.
        path: of the file or folder.
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
    def generated_identities(self) -> tuple[int, range] | None:
        """Seed and numbers of generated identities; None for all other faces."""
        is_folder = filesystem.is_folder(self.path)
        folder = self.path if is_folder else filesystem.parent(self.path)
        description = f"{self.path}.json" if self.is_pairs else filesystem.join(folder, "generated.json")
        if not filesystem.exists(description):
            return None
        try:
            content = read_json(description)
            if self.is_pairs:
                pairs = checked(TypeAdapter(_GeneratedPairs), content)
                return pairs.seed, range(pairs.identities.first, pairs.identities.stop, pairs.identities.step)
            found = checked(TypeAdapter(_Generated), content)
            return found.seed, range(found.first_identity, found.first_identity + found.num_identities)
        except ValueError:
            return None

    @cached_property
    def digests(self) -> frozenset[bytes]:
        """Hashes of its images, or of a random sample."""
        if self.is_pairs:
            images: Iterable[bytes] = read_pairs(self.path).images
        else:
            count = self.faces.num_images
            records = np.arange(count)
            if count > NUM_SAMPLED:
                generator = np.random.default_rng(0)
                records = np.sort(generator.choice(count, NUM_SAMPLED, replace=False))
            images = self.faces.read(records).images
        return frozenset(hashlib.blake2b(one, digest_size=16).digest() for one in images if one)


def find_leakage(sweep: Sweep) -> Iterator[str]:
    """Yield a line for each evaluation set that overlaps with a training or selection set."""
    selection = [*_eval_files("objective", sweep.config.objective)]
    test = [*_eval_files("confirm", sweep.config.confirm)]
    train = [*training_sets(sweep)]
    compared = [(one, other, "a training set") for one in (*selection, *test) for other in train]
    compared += [(one, other, "a selection set") for one in test for other in selection]
    for one, other, role in compared:
        if reason := overlap(one, other):
            yield f"{one.key}: {one.path} and {other.key}, {other.path}, {role}, {reason}"


def _eval_files(section: str, eval_sets: EvalSets) -> Iterator[FaceFile]:
    if eval_sets.pairs is not None:
        yield FaceFile(f"{section}.pairs", eval_sets.pairs, is_pairs=True)
    if eval_sets.identities is not None:
        yield FaceFile(f"{section}.identities", eval_sets.identities)


def training_sets(sweep: Sweep) -> Iterator[FaceFile]:
    """Yield the training sets of all trials and of the runs that they start from.

    Earlier runs are followed as far back as their directories exist.
    """
    trees: list[tuple[str, Mapping[str, Any]]] = [("settings", sweep.default.model_dump(mode="json"))]
    if sweep.default_finetune is not None:
        trees.append(("finetune.settings", sweep.default_finetune.model_dump(mode="json")))
    for key, dimension in sweep.config.space.items():
        if key.startswith("start.") or key == "landmarks.weights":
            section, name = key.split(".")
            trees += [(f"space.{key}", {section: {name: path}}) for path in dimension.values]
    seen: set[str] = set()
    while trees:
        source, tree = trees.pop(0)
        paths = set_paths(tree)
        for path in paths:
            if filesystem.absolute(path) not in seen:
                seen.add(filesystem.absolute(path))
                yield FaceFile(f"{source}: {'data.path' if len(paths) == 1 else 'data.mix'}", path)
        start, landmarks = tree.get("start") or {}, tree.get("landmarks") or {}
        for run in (start.get("transformer"), start.get("landmarks"), landmarks.get("weights")):
            if run is not None and run not in seen and (config := _read_run_config(run)):
                seen.add(run)
                trees.append((f"run {run}", config))


def _read_run_config(path: str) -> Mapping[str, Any]:
    """Return the configuration of a run's directory; empty if it is not one of ours."""
    try:
        return dict(read_description(path)["config"])
    except (UserError, ValueError):
        return {}


def overlap(one: FaceFile, other: FaceFile) -> str | None:
    """Return what two sets have in common, None if nothing is found.

    A set that an earlier run was trained on and that no longer exists cannot be compared.
    """
    paths = {filesystem.absolute(one.path), filesystem.absolute(other.path)}
    if one.is_pairs == other.is_pairs and len(paths) == 1:
        return "are the same file"
    try:
        are_sets = not one.is_pairs and not other.is_pairs
        if are_sets and one.faces.fingerprint == other.faces.fingerprint:
            return "are the same set"
        mine, theirs = one.generated_identities, other.generated_identities
        if mine is not None and theirs is not None and mine[0] == theirs[0]:
            common = set(mine[1]) & set(theirs[1])
            if common:
                return f"share {len(common)} generated identities, such as {min(common)}"
        images = one.digests & other.digests
    except UserError:
        return None
    return f"share {len(images)} of the images compared" if images else None
