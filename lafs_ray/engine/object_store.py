"""The inputs of a run in Ray's object store, in two parts, so that a process reads only its own."""

from __future__ import annotations

from dataclasses import dataclass, fields

import ray

from lafs_ray.training.prepare import RunInputs

# What read tasks need: without torch, whose import takes each of their processes seconds.
_SOURCE = ("faces", "sampler")


@dataclass(frozen=True)
class Shared:
    """References to the inputs of a run, of which each node holds one copy.

    Args:
        source: to the set and the order of its records, (`FaceSet`, `EpochSampler`).
        rest: to the other fields of `RunInputs` by name.
    """

    source: ray.ObjectRef
    rest: ray.ObjectRef

    def inputs(self) -> RunInputs:
        """Return the inputs; their arrays are those of the object store."""
        source, rest = ray.get([self.source, self.rest])
        return RunInputs(**dict(zip(_SOURCE, source, strict=True)), **rest)


def share(inputs: RunInputs) -> Shared:
    """Put the inputs of a run into the object store."""
    rest = {
        field.name: getattr(inputs, field.name)
        for field in fields(inputs)
        if field.name not in _SOURCE
    }
    return Shared(ray.put(tuple(getattr(inputs, name) for name in _SOURCE)), ray.put(rest))
