"""A job in Ray's object store, in two parts, so that a process takes the one that it needs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import ray

from lafs_ray.training.prepare import RunInputs

# What read tasks get: they import no torch, seconds of a core for each of their processes.
_READ = ("faces", "plan")


@dataclass(frozen=True)
class Shared:
    """References to a job, of which each node holds one copy.

    Args:
        reading: to the set and the order of its records, (`FaceSet`, `EpochSampler`).
        rest: to the other fields of `RunInputs` by name.
    """

    reading: ray.ObjectRef
    rest: ray.ObjectRef

    def inputs(self) -> RunInputs:
        """The job; its arrays are those of the object store."""
        reading, rest = ray.get([self.reading, self.rest])
        return RunInputs(**dict(zip(_READ, reading, strict=True)), **rest)


def share(inputs: RunInputs) -> Shared:
    """Put a job into the object store."""
    rest = {
        field.name: getattr(inputs, field.name)
        for field in fields(inputs)
        if field.name not in _READ
    }
    return Shared(ray.put(tuple(getattr(inputs, name) for name in _READ)), ray.put(rest))
