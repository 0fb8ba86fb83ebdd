"""Labels of the packed set: those of each source follow those of the source before it, without gaps.

Labels of folders and lists have names and are numbered when they are opened. Those of `.rec` files are known after pass
1: the labels that occur in its runs count, whatever a header claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lafs_ray.data.io import reading
from lafs_ray.data.label_numbers import LabelNumbers
from lafs_ray.data.packed_set import MAX_LABELS
from lafs_ray.data.packing.options import PackPlan
from lafs_ray.data.packing.sorted_runs import SortedRun, read_all_rows
from lafs_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class SourceLabels:
    """Labels of all sources.

    Args:
        numbers: of each source, what its labels become.
        names: of each source, the names of its labels in their new order.
    """

    numbers: tuple[LabelNumbers, ...]
    names: tuple[Sequence[str], ...]

    @property
    def first(self) -> tuple[int, ...]:
        """First label of each source, then the number of all labels."""
        ends = [numbers.first + len(numbers.labels) for numbers in self.numbers]
        return (0, *ends)

    def of(self, labels: NDArray[np.int32], sources: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels in the set of labels of these sources, int64 [n]; -1: none."""
        result = np.full(len(labels), -1, np.int64)
        for source in np.unique(sources).tolist():
            members = sources == source
            result[members] = self.numbers[source].of(labels[members].astype(np.int64))
        return result


def number_labels(plan: PackPlan, runs: Sequence[SortedRun]) -> SourceLabels:
    """Number the labels of all sources.

    Raises:
        DataError: there are more labels than a file can hold.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in plan.sources]
    if any(source.names is None for source in plan.sources):
        for run in runs:
            with reading.open_input(run.uri) as file:
                rows = read_all_rows(file, run)
            of_row = np.searchsorted(plan.starts, rows["number"], side="right") - 1
            for source in np.unique(of_row).tolist():
                labels = rows["label"][of_row == source]
                found[source] = np.union1d(found[source], labels[labels >= 0])
    first, numbers, names = 0, list[LabelNumbers](), list[Sequence[str]]()
    for source, labels in zip(plan.sources, found, strict=True):
        if source.names is not None:
            labels = np.arange(len(source.names))
        numbers.append(LabelNumbers(labels.astype(np.int64), first))
        names.append(source.names if source.names is not None else [str(label) for label in labels.tolist()])
        first += len(labels)
    if first > MAX_LABELS:
        raise DataError(
            "identities",
            found=f"{first} in all sources",
            expected=f"at most {MAX_LABELS}: labels are float32 in the file",
            fix="omit the labels, or pack fewer sources",
        )
    return SourceLabels(tuple(numbers), tuple(names))
