"""`config.json` of a run: what the run is. Its types are checked here, whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, model_validator

from lafs_ray.data.io import filesystem, json_text
from lafs_ray.training.checkpoint.environment import environment

DESCRIPTION = "config.json"


@dataclass(frozen=True)
class MixedSetSize:
    """One set of a run on several, for readers of its folder.

    Args:
        path: as configured.
        images: in it.
        share: of the images of each batch on average.
        passes: through it in the run.
    """

    path: str
    images: int
    share: float
    passes: float


@dataclass(frozen=True)
class Origin:
    """What a run's folder is checked by, besides its configuration and set.

    Args:
        landmarks: hash of the landmark weights read; their file may change, a run may not.
        transformer: hash of the transformer's weights read.
        neighbors: hash of the pairs read.
        length: of the run in steps, for readers of the folder without its faces.
        sets: of a run on several, likewise.
    """

    landmarks: str | None = None
    transformer: str | None = None
    neighbors: str | None = None
    length: Mapping[str, int] | None = None
    sets: tuple[MixedSetSize, ...] = ()


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Log(_Part):
    every_steps: PositiveInt


class _MixedSet(_Part):
    path: str
    share: float


class _Data(_Part):
    path: str | None = None
    mix: list[_MixedSet] | None = None

    @model_validator(mode="after")
    def _has_faces(self) -> _Data:
        if self.path is None and not self.mix:
            raise ValueError("neither path nor mix")
        return self


class _Landmarks(_Part):
    weights: str | None = None


class _Start(_Part):
    transformer: str | None = None
    landmarks: str | None = None


class _Settings(_Part):
    """What readers of a run's folder use of its settings; a file of an older version may lack others."""

    data: _Data
    batch_size: PositiveInt
    log: _Log
    landmarks: _Landmarks
    run: dict[str, Any]
    start: _Start | None = None


class _Length(_Part):
    total_steps: PositiveInt


class _SetSize(_MixedSet):
    passes: float


class _Description(_Part):
    kind: str
    faces: str
    config: _Settings
    length: _Length | None = None
    sets: list[_SetSize] = []


_DESCRIPTION = TypeAdapter(_Description)


def read_description(run: str) -> dict[str, Any]:
    """Read what a run is: kind, faces, config, hashes of initial weights, length.

    Args:
        run: its folder.

    Raises:
        DataError: the file is missing.
        ValueError: it is not of a run.
    """
    content = json_text.read_json(filesystem.join(run, DESCRIPTION))
    json_text.checked(_DESCRIPTION, content)
    return dict(content)


def set_paths(config: Mapping[str, Any]) -> list[str]:
    """Return the paths of the faces that a run's settings name; none where they are of a part of a run."""
    data = config.get("data") or {}
    return [data["path"]] if data.get("path") is not None else [one["path"] for one in data.get("mix") or ()]


def write_description(run: str, description: Mapping[str, Any]) -> None:
    """Write what a run is, and what it is started on, atomically."""
    json_text.write_json(filesystem.join(run, DESCRIPTION), {**description, "environment": environment()})
