"""The faces to train on: one set, or several that are mixed by shares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lafs_ray.config import MIX_PERIOD
from lafs_ray.config.loader import Real, Section, Tuning, parse_tuple
from lafs_ray.config.paths import AbsolutePath


class MixedSet(Section):
    """One of several sets."""

    path: AbsolutePath
    """Where it is, as data.path."""
    share: Annotated[Real, Field(gt=0.0)]
    """Its share of the images of each batch on average; only the ratios of the shares count."""
    color_order: Literal["rgb", "bgr"] | None = None
    """Color order of its decoded JPEGs; null: data.color_order."""
    landmarks: AbsolutePath | None = None
    """Folder of its cached landmarks; null: next to the set."""


@dataclass(frozen=True)
class NamedSet:
    """One set of a run.

    Args:
        path: where it is.
        share: of the images of each batch on average, as a ratio to the others'.
        color_order: of its decoded JPEGs.
        landmarks: folder of its cached landmarks as one of several sets; None: as the run says.
    """

    path: str
    share: float
    color_order: Literal["rgb", "bgr"]
    landmarks: str | None


class Data(Section):
    """The faces to train on."""

    path: Annotated[AbsolutePath | None, Tuning.OPERATIONAL] = None
    """A .rec, a WebDataset .tar or a Parquet file with images, a folder of one kind, a glob, or a URI (s3://, gs://) of
    one; either this or mix."""
    mix: Annotated[tuple[MixedSet, ...], BeforeValidator(parse_tuple), Field(min_length=1)] | None = None
    """Several sets in place of path: a list of {path, share}, optionally with color_order and landmarks (the folder of
    cached ones) of each (docs/data.md). Given on the command line, path and mix replace each other."""
    color_order: Annotated[Literal["rgb", "bgr"], Tuning.OPERATIONAL] = "rgb"
    """Color order of the decoded JPEGs: rgb (insightface) or bgr (written by the reference's converter)."""
    chunk_records: Annotated[int, Field(ge=1)] = 4
    """Neighboring records kept together in the order: 1 is a perfect shuffle, 256 suits shuffled sets on slow
    storage."""
    max_bad_records: Annotated[int, Field(ge=0), Tuning.OPERATIONAL] = 100
    """Damaged records that are skipped and logged before the run stops, in all sets together."""

    @property
    def sets(self) -> tuple[NamedSet, ...]:
        """The sets, one or several."""
        if self.mix is None:
            assert self.path is not None, "one of the two is given"
            return (NamedSet(self.path, 1.0, self.color_order, None),)
        order = self.color_order
        return tuple(NamedSet(one.path, one.share, one.color_order or order, one.landmarks) for one in self.mix)

    @property
    def named(self) -> str:
        """The path, or the paths of the mix, for messages."""
        return ", ".join(one.path for one in self.sets)

    def require_landmarks(self, cache: str | None) -> None:
        """Raise a ValueError unless the folder of each set's cached landmarks is named.

        Args:
            cache: landmarks.cache.
        """
        if self.mix is None and cache is None:
            raise ValueError("landmarks.cache: required, the folder of cached landmarks")
        for number, one in enumerate(self.mix or ()):
            if one.landmarks is None:
                raise ValueError(f"data.mix.{number}.landmarks: required, the folder of the set's cached landmarks")

    def refuse_cache(self, cache: str | None) -> None:
        """Raise a ValueError if one folder of cached landmarks is named for several sets."""
        if self.mix is not None and cache is not None:
            raise ValueError(f"landmarks.cache: {cache}, but each set has its own; name them in data.mix: landmarks")

    def refuse_landmarks(self, use: str) -> None:
        """Raise a ValueError if a set of the mix has cached landmarks that nothing uses.

        Args:
            use: what uses cached landmarks, for the message.
        """
        for number, one in enumerate(self.mix or ()):
            if one.landmarks is not None:
                raise ValueError(f"data.mix.{number}.landmarks: {one.landmarks}, but {use}; leave it out")

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if self.path is None and self.mix is None:
            raise ValueError("path or mix is required: one set, or several with shares (docs/data.md)")
        if self.path is not None and self.mix is not None:
            raise ValueError(f"path is {self.path}, and mix is given as well; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _sets_are_several(self) -> Data:
        paths = [one.path for one in self.mix or ()]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"mix: {path} is named {paths.count(path)} times; name it once, with the whole share")
        return self

    @model_validator(mode="after")
    def _shares_are_not_too_small(self) -> Data:
        total = sum((Fraction(one.share) for one in self.mix or ()), Fraction(0))
        for number, one in enumerate(self.mix or ()):
            if Fraction(one.share) * MIX_PERIOD < total:
                raise ValueError(
                    f"mix.{number}.share: {one.share:g} of {float(total):g} is less than 1 image in {MIX_PERIOD}; "
                    "raise it, or leave the set out"
                )
        return self
