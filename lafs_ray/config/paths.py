"""Paths of the configuration: URIs, or absolute paths, as Ray starts workers in other folders."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator


def absolute(path: str, here: str = "") -> str:
    """Return a path that processes in other folders find; a URI stays as it is.

    Args:
        path: path or URI.
        here: the folder that a relative path is meant from; empty is that of this process.
    """
    return path if "://" in path else os.path.abspath(os.path.join(here, os.path.expanduser(path)))


def _here(path: str) -> str:
    # pydantic 2.7 would pass its own second argument to `absolute`.
    return absolute(path)


AbsolutePath = Annotated[str, AfterValidator(_here)]
